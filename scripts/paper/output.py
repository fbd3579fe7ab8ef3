"""What was measured, as tables in Markdown and as plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minicache_cpp.host.units import digits

from .figures import Config, Curve, Figure

Rows = dict[str, dict[str, Any]]

COLUMNS = ("cache", "ratio", "total", "bits", "mean KL", "±", "top-1", "perplexity")


def markdown(data: dict[str, Any], figures: Sequence[Figure], plots: Sequence[str]) -> str:
    """All tables of a model, as Markdown."""
    settings = data["settings"]
    lines = [
        f"# {data['model']}",
        "",
        f"Context {settings['n_ctx']} in {settings['chunks']} chunks, {data.get('tokens', 0)} tokens scored in their "
        f"second halves, ubatch {settings['ubatch']}. KL in nats and top-1 against the model's own f16 cache; ratio "
        "is f16 bytes per cached token over the cache's, total ratio that of all bytes at this context; bits are those "
        "of a K or V value. Layers that are not merged have the cache type of the figure, and a code takes no more "
        "bytes than SLERP of the same layers, unless its ratio is given.",
    ]
    for figure in figures:
        lines += ["", f"## {figure.title}", ""]
        if f"{figure.name}.svg" in plots:
            lines += [f"![{figure.title}]({figure.name}.svg)", ""]
        lines += table(data["rows"], figure)
    if data["pairs"]:
        lines += ["", "## distances", "", *distances(data["pairs"])]
    return "\n".join(lines) + "\n"


def table(rows: Rows, figure: Figure) -> list[str]:
    """The rows of a figure, curve by curve, each configuration once."""
    head = ([figure.x] if figure.x else []) + list(COLUMNS)
    lines = [_row(head), _row(["---"] * len(head))]
    done = set()
    for curve in figure.curves:
        for x, config in curve.points:
            if config.label in done or config.label not in rows:
                continue
            done.add(config.label)
            row = rows[config.label]
            cells = [
                name_of(curve, config),
                f"{row['ratio']:.2f}",
                f"{row['total_ratio']:.2f}",
                f"{row['bits_per_value']:.2f}",
                digits(row["kl_mean"]),
                digits(row["kl_mean_stderr"] or 0.0, 1),
                f"{row['top1']:.1%}",
                f"{row['ppl']:.3f}",
            ]
            lines.append(_row(([number(figure, x)] if figure.x else []) + cells))
    return lines


def number(figure: Figure, x: float) -> str:
    return f"{x:.1%}" if figure.name.startswith("layers") else f"{x:g}"


def name_of(curve: Curve, config: Config) -> str:
    """The curve's name, and in a table of ratios what distinguishes its points."""
    if config.ratio:
        return f"{curve.name}, ratio {config.ratio:g}, layers {config.start} and deeper"
    if config.mode == "plain":
        return f"plain {config.kind}"
    return f"{curve.name}, layers {config.start} and deeper"


def distances(pairs: dict[str, Any]) -> list[str]:
    lines = [
        "Mean Ω/π of the two layers' vectors, before and after turning layer b's into layer a's coordinates, on text "
        "that the basis matrices were not fitted to.",
        "",
        _row(["layers", "K", "K aligned", "V", "V aligned"]),
        _row(["---"] * 5),
    ]
    for name, pair in pairs.items():
        numbers = [pair["before"][0], pair["after"][0], pair["before"][1], pair["after"][1]]
        lines.append(_row([name, *(f"{one:.3f}" for one in numbers)]))
    return lines


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(path: Path, rows: Rows, figure: Figure, title: str) -> None:
    """Plot KL and top-1 over the figure's own axis, or over the ratio."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10.4, 4.4), layout="constrained")
    losses, agreement = canvas.subplots(1, 2)
    for curve in figure.curves:
        points = [(x, rows[config.label], config) for x, config in curve.points if config.label in rows]
        if not figure.x:
            points = [(row["ratio"], row, config) for _, row, config in points]
        points.sort(key=lambda point: point[0])
        # a divergence of 0, such as that of f16 from itself, has no place on a logarithmic axis
        seen = [(x, row) for x, row, _ in points if (row["kl_mean"] or 0) > 0]
        style = "--" if all(config.mode == "plain" for _, _, config in points) and figure.x else "-"
        marker = None if style == "--" else "o"
        if seen:
            losses.plot(
                [x for x, _ in seen],
                [row["kl_mean"] for _, row in seen],
                style,
                marker=marker,
                label=curve.name,
            )
        agreement.plot(
            [x for x, _, _ in points],
            [100 * row["top1"] for _, row, _ in points],
            style,
            marker=marker,
            label=curve.name,
        )
    x_label = figure.x or "ratio"
    losses.set(xlabel=x_label, ylabel="mean KL divergence (nats)", yscale="log")
    agreement.set(xlabel=x_label, ylabel="top-1 agreement (%)")
    for panel in (losses, agreement):
        panel.grid(visible=True, which="both", alpha=0.3)
    agreement.legend()
    canvas.suptitle(f"{title}: {figure.title}")
    # text stays text and ids are the same each time, so that the files are small and their changes can be read
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": figure.name}):
        canvas.savefig(path, metadata={"Date": None})

"""The curve of an evaluation: KL divergence over bytes per token, both on logarithmic axes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ..errors import MiniCacheError
from ..host.files import begins_with, refuse_to_write, replacing
from ..host.paths import name_shown

# the kinds of images, by the ends of their names, and how their files begin
BEGINNINGS = {
    "eps": (b"%!PS",),
    "jpeg": (b"\xff\xd8\xff",),
    "jpg": (b"\xff\xd8\xff",),
    "pdf": (b"%PDF",),
    "png": (b"\x89PNG",),
    "ps": (b"%!PS",),
    "svg": (b"<?xml", b"<svg"),
    "tif": (b"II*\0", b"MM\0*"),
    "tiff": (b"II*\0", b"MM\0*"),
    "webp": (b"RIFF",),
}


def check_plot(path: Path) -> None:
    """Raise MiniCacheError where the plot could not be written, before anything is measured."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MiniCacheError(
            "--plot needs matplotlib; install it with pip install 'minicache-cpp[plot]'"
        ) from None
    kind = path.suffix.lstrip(".").lower()
    if kind not in BEGINNINGS:
        raise MiniCacheError(f"--plot {path}: its name must end with one of .{', .'.join(BEGINNINGS)}")
    refuse_to_write(path, f"a {kind.upper()} image", lambda one: begins_with(one, *BEGINNINGS[kind]))


def plot(path: Path, runs: list[dict[str, Any]]) -> None:
    """Draw a panel for each run. Rows without divergence, such as f16's, have no place on these axes.

    Raises MiniCacheError where the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    n_columns = min(2, len(runs))
    n_rows = -(-len(runs) // n_columns)
    figure = Figure(figsize=(6.4 * n_columns, 4.8 * n_rows), layout="constrained")
    panels = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for panel in panels[len(runs) :]:
        panel.set_axis_off()
    for panel, run in zip(panels, runs, strict=False):
        for label, marker in (("plain", "o"), ("plans", "s"), ("SLERP and averages", "^")):
            rows = [row for row in run["rows"] if kind_of(row["name"]) == label and (row["kl_mean"] or 0) > 0]
            rows.sort(key=lambda row: row["bytes_per_token"])
            if rows:
                x = [row["bytes_per_token"] for row in rows]
                panel.plot(x, [row["kl_mean"] for row in rows], marker=marker, label=label)
            for row in rows:
                panel.annotate(
                    short_name(row["name"]),
                    (row["bytes_per_token"], row["kl_mean"]),
                    textcoords="offset points",
                    xytext=(4, 4),
                    fontsize="x-small",
                    parse_math=False,
                )
        panel.set(
            xscale="log",
            yscale="log",
            xlabel="bytes per cached token",
            ylabel="mean KL divergence (nats)",
        )
        where = f"context {run['context']} from position {run['pos_offset']}"
        # a $ in a name is no formula
        panel.set_title(f"{name_shown(run['model'])}, {where}", parse_math=False)
        panel.margins(x=0.15)  # room for the names
        panel.grid(visible=True, which="both", alpha=0.3)
        if panel.get_legend_handles_labels()[0]:
            panel.legend()
    # In memory, because on a full disk some of matplotlib's writers raise other errors than OSError, or none.
    # Text stays text, which makes the files small.
    image = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(image, format=path.suffix[1:])
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(image.getvalue())
    except OSError as error:
        raise MiniCacheError(f"the plot {path} cannot be written: {error.strerror or error}") from error


def kind_of(name: str) -> str:
    """Which curve a cache belongs to."""
    if name.endswith(".gguf"):
        return "plans"
    return "SLERP and averages" if ":" in name else "plain"


def short_name(name: str) -> str:
    """The last part of a long SPEC, by which the rows of a table differ, or the name of a plan's file."""
    mode, _, settings = name.partition(":")
    return f"{mode} {settings.split(',')[-1].removeprefix('type=')}" if settings else name_shown(name)

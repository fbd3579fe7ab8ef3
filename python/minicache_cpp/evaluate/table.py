"""What an evaluation found, as tables and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..host.tables import aligned
from ..host.units import digits, mib

# characters of a cache's name in a table; a longer name is numbered and listed below the heading
LONGEST_NAME = 24

Row = dict[str, Any]


def to_json(runs: list[dict[str, Any]]) -> str:
    """The first run as one object; where there are more, all of them in its "runs"."""
    found = dict(runs[0])
    if len(runs) > 1:
        found["runs"] = runs
    return json.dumps(finite(found), indent=2)


def finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Three tables of all contexts and first positions: sizes and losses, their spread, and KL by context."""
    labels = labels_of(row["name"] for row in runs[0]["rows"])
    buckets = _in_order(row["kl_by_position"] for run in runs for row in run["rows"])
    lines = [*_heading(runs), *legend(labels)]
    lines += _block(runs, labels, SIZES_AND_LOSSES)
    lines += _block(runs, labels, SPREAD, floor=True)
    lines += ["", "mean KL of the tokens that have fewer tokens before them than"]
    lines += _block(runs, labels, {_end(one): _bucket(one) for one in buckets}, floor=True)[1:]
    notes = [f"note: {row['name']}: {row['note']}" for run in runs for row in run["rows"] if row["note"]]
    return "\n".join([*lines, *dict.fromkeys(notes)])


Columns = dict[str, Callable[[Row], str]]

SIZES_AND_LOSSES: Columns = {
    "KV": lambda row: mib(row["bytes"]),
    "ratio": lambda row: f"{row['ratio']:.2f}",
    "total": lambda row: f"{row['total_ratio']:.2f}",
    "bits": lambda row: f"{row['bits_per_value']:.2f}",
    "mean KL": lambda row: digits(row["kl_mean"]),
    "±": lambda row: digits(row["kl_mean_stderr"], 1),
    # a cache that computes the same, as f16 does, has nothing that the floor could explain
    "excess": lambda row: digits(row["kl_excess"]) if row["kl_max"] else "-",
    "± ": lambda row: digits(row["kl_excess_stderr"], 1) if row["kl_max"] else "-",
    "top-1": lambda row: f"{row['top1']:.1%}",
}
SPREAD: Columns = {
    "median": lambda row: digits(row["kl_median"]),
    "p99": lambda row: digits(row["kl_p99"]),
    "p99.9": lambda row: digits(row["kl_p999"]),
    "max KL": lambda row: digits(row["kl_max"]),
    "ppl": lambda row: f"{row['ppl']:.3f}",
    "±": lambda row: digits(row["ppl_stderr"], 1),
    "of f16's": lambda row: f"{row['ppl_ratio']:.4f}",
    "± ": lambda row: digits(row["ppl_ratio_stderr"], 1),
}


def labels_of(names: Iterable[str]) -> dict[str, str]:
    """Each name as tables show it: itself, or its first word with a number where it is long."""
    labels: dict[str, str] = {}
    for name in names:
        short = f"{name.partition(':')[0]} #" if ":" in name else "plan #"
        number = 1 + sum(label.startswith(short) for label in labels.values())
        labels[name] = name if len(name) <= LONGEST_NAME else f"{short}{number}"
    return labels


def legend(labels: dict[str, str]) -> list[str]:
    """A line for each name that tables show by its number."""
    return [f"{label}: {name}" for name, label in labels.items() if label != name]


def _block(
    runs: Sequence[dict[str, Any]], labels: dict[str, str], columns: Columns, floor: bool = False
) -> list[str]:
    """The lines of a table with an empty line before each run; with `floor`, each run begins with its floor."""
    cells = [["cache", "context", "from", *columns]]
    sizes = []
    for run in runs:
        rows = [("floor", run["floor"])] * floor + [(labels[row["name"]], row) for row in run["rows"]]
        sizes.append(len(rows))
        for label, row in rows:
            where = [str(run["context"]), str(run["pos_offset"])]
            cells.append([label, *where, *(column(row) for column in columns.values())])
    head, *lines = aligned(cells)
    found = ["", head]
    for number, size in enumerate(sizes):
        found += [""] * (number > 0) + lines[:size]
        lines = lines[size:]
    return found


def _heading(runs: Sequence[dict[str, Any]]) -> list[str]:
    found = runs[0]
    scored = ", ".join(dict.fromkeys(f"{one['tokens']} at context {one['context']}" for one in runs))
    reading = (
        "one token at a time, as in decode" if found["ubatch"] == 1 else f"{found['ubatch']} tokens at a time"
    )
    part = "whole" if found["score"] == "all" else "the second halves of"
    return [
        f"{Path(found['model']).name}, read {reading}, threads {found['threads']}",
        f"tokens scored: {scored}, {part} chunks of {', '.join(found['text'])}",
        "KL in nats ± its standard error, and top-1, against the model's own f16 cache; perplexity beside that of f16",
        "floor: the f16 cache read without flash attention, which rounds otherwise; excess: mean KL above the floor",
    ]


def _in_order(keys: Iterable[Iterable[str]]) -> list[str]:
    """All of the keys once, by the numbers that they begin with."""
    return sorted({one for some in keys for one in some}, key=lambda one: int(one.partition("-")[0]))


def _end(bucket: str) -> str:
    return bucket.partition("-")[2]


def _bucket(bucket: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = row["kl_by_position"].get(bucket)
        return digits(found["kl_mean"]) if found else "-"

    return cell

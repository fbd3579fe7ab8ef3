"""What an evaluation found, as a table and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..host.tables import aligned
from ..host.units import digits, mib
from .facts import VALUES

SIZES = ["KV", "ratio", "total", "bits"]
LOSSES = ["mean KL", "±", "p99 KL", "max KL", "top-1", "ppl"]


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
    """One table of all contexts and first positions, each of them a block of rows."""
    distances = sorted({int(one) for run in runs for one in run["rows"][0]["recall_by_distance"]})
    columns = ["cache", "context", "from", *SIZES, *LOSSES, *(f"recall {one}" for one in distances)]
    head, *rows = aligned([columns, *(_cells(run, row, distances) for run in runs for row in run["rows"])])
    blocks = []
    for run in runs:
        n = len(run["rows"])
        blocks.append("\n".join(rows[:n]))
        rows = rows[n:]
    notes = [f"note: {row['name']}: {row['note']}" for run in runs for row in run["rows"] if row["note"]]
    return "\n".join([*_heading(runs, distances), "", head, "\n\n".join(blocks), *dict.fromkeys(notes)])


def _heading(runs: Sequence[dict[str, Any]], distances: Sequence[int]) -> list[str]:
    found = runs[0]
    scored = ", ".join(dict.fromkeys(f"{one['tokens']} at context {one['context']}" for one in runs))
    reading = (
        "one token at a time, as in decode" if found["ubatch"] == 1 else f"{found['ubatch']} tokens at a time"
    )
    lines = [
        f"{Path(found['model']).name}, read {reading}, threads {found['threads']}",
        f"tokens scored: {scored}, the second halves of chunks of {', '.join(found['text'])}",
        "KL in nats ± its standard error, and top-1, against the model's own f16 cache; the f16 rows are the floor",
    ]
    if distances:
        asked = found["rows"][0]["recall_asked"] // len(found["rows"][0]["recall_by_distance"])
        lines.append(
            f"recall: {asked} questions for each distance in tokens, chance 1 in {len(VALUES)} or less, "
            f"read {found['prompt_ubatch']} tokens at a time"
        )
    return lines


def _cells(run: dict[str, Any], row: dict[str, Any], distances: Sequence[int]) -> list[str]:
    recalled = row["recall_by_distance"]
    return [
        row["name"],
        str(run["context"]),
        str(run["pos_offset"]),
        mib(row["bytes"]),
        f"{row['ratio']:.2f}",
        f"{row['total_ratio']:.2f}",
        f"{row['bits_per_value']:.2f}",
        digits(row["kl_mean"]),
        digits(row["kl_mean_stderr"], 1),
        digits(row["kl_p99"]),
        digits(row["kl_max"]),
        f"{row['top1']:.1%}",
        f"{row['ppl']:.3f}",
        *(f"{recalled[one]:.1%}" if one in recalled else "-" for one in map(str, distances)),
    ]

"""What caches answered, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...host.tables import aligned
from ..table import labels_of, legend

COLUMNS = ["cache", "ratio", "task", "context", "depth", "asked", "metric", "score", "±", "as f16", "changed"]


def table(found: dict[str, Any]) -> str:
    """A row for each cache, task and metric, with an empty line between tasks."""
    rows = found["rows"]
    labels = labels_of(dict.fromkeys(row["name"] for row in rows))
    examples = f", {found['shots']} examples before each item" if found["shots"] else ""
    lines = [
        f"{Path(found['model']).name}, read {found['ubatch']} tokens at a time, threads {found['threads']}{examples}",
        "score ± its standard error; as f16: answers that are those of the f16 cache; changed: those that are not",
        *legend(labels),
    ]
    cells, begins = [COLUMNS], []
    for row in rows:
        begins.append((len(cells) - 1, (row["task"], row["context"], row["depth"])))
        for metric, value in row["metrics"].items():
            compared = value["agreement"] is not None
            cells.append(
                [
                    labels[row["name"]],
                    f"{row['ratio']:.2f}",
                    row["task"],
                    str(row["context"]),
                    "-" if row["depth"] is None else f"{row['depth']:g}",
                    str(row["asked"]),
                    metric,
                    f"{value['score']:.1%}",
                    f"{value['stderr']:.1%}",
                    f"{value['agreement']:.1%}" if compared else "-",
                    str(value["changed"]) if compared else "-",
                ]
            )
    head, *body = aligned(cells)
    lines += ["", head]
    last = begins[0][1]
    starts = dict(begins)
    for number, line in enumerate(body):
        if number in starts and starts[number] != last:
            last = starts[number]
            lines.append("")
        lines.append(line)
    notes = [f"note: {row['name']}: {row['note']}" for row in rows if row["note"]]
    return "\n".join([*lines, *dict.fromkeys(notes)])

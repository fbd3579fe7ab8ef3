"""Files in LongBench's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def line(context: str, asked: str, *answers: str, classes: tuple[str, ...] = ()) -> dict[str, Any]:
    """One item of a task, as a line of its file holds it."""
    return {"context": context, "input": asked, "answers": list(answers), "all_classes": list(classes) or None,
            "length": len(context.split()), "dataset": "made", "language": "en", "_id": asked}  # fmt: skip


def write(folder: Path, task: str, *lines: dict[str, Any]) -> None:
    """Writes the file of a task."""
    text = "\n".join(json.dumps(one, ensure_ascii=False) for one in lines)
    (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")

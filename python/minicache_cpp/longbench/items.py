"""The questions of LongBench's files, <task>.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MiniCacheError
from ..text.files import read_text
from .tasks import TASKS, task_of


@dataclass(frozen=True)
class Item:
    """One line of a task's file: a question, its context, and the right answers."""

    context: str
    input: str
    answers: list[str]
    classes: list[str]
    length: int
    id: str

    @classmethod
    def of(cls, fields: Any) -> Item:
        """Makes an item from a JSON object."""
        return cls(
            context=str(fields["context"]),
            input=str(fields["input"]),
            answers=[str(answer) for answer in fields["answers"]],
            classes=[str(name) for name in fields.get("all_classes") or ()],
            length=int(fields.get("length") or 0),
            id=str(fields.get("_id") or ""),
        )


def find_files(folder: Path, wanted: list[str]) -> dict[str, Path]:
    """The files in a folder by the names of their tasks: those that are wanted, or all there are."""
    if not folder.is_dir():
        raise MiniCacheError(f"--data {folder} is not a folder")
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl")) if task_of(path.stem) in TASKS}
    for name in wanted:
        if task_of(name) not in TASKS:
            raise MiniCacheError(f"{name!r} is not a task of LongBench; its tasks are {', '.join(TASKS)}")
        if name not in files:
            raise MiniCacheError(f"there is no {name}.jsonl in {folder}")
    if not files:
        raise MiniCacheError(f"no file in {folder} has the name of a task, such as qasper.jsonl")
    return {name: files[name] for name in wanted} if wanted else files


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """The lines of a task's file, or the first ones."""
    items = list(_items(path, limit))
    if not items:
        raise MiniCacheError(f"{path} is empty")
    return items


def _items(path: Path, limit: int | None) -> Iterator[Item]:
    n = 0
    for number, line in enumerate(read_text(path, "task").split("\n"), 1):
        if limit is not None and n >= limit:
            return
        if not line.strip():
            continue
        try:
            yield Item.of(json.loads(line))
        except (ValueError, KeyError, TypeError):
            raise MiniCacheError(
                f"{path}, line {number}: not an object with context, input and answers"
            ) from None
        n += 1

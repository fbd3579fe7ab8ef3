"""Reads the items of a task from a file: JSON lines, one JSON array, or bAbI's stories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import MiniCacheError
from ...text.files import read_text
from . import babi
from .kind import BadItem, FileKind
from .registry import FILE_KINDS


@dataclass(frozen=True)
class TaskFile:
    """A file's items, all of one kind, by the places at which they stand, such as "line 3"."""

    name: str
    kind: FileKind
    items: list[tuple[str, Any]]


def read_task(path: Path) -> TaskFile:
    """Reads a file; MiniCacheError with the line and what was wrong where an item cannot be read."""
    text = read_text(path, "task")
    kind: FileKind | None = None
    items = []
    place = ""
    try:
        for place, record in _records(text):
            if not isinstance(record, dict):
                raise BadItem("not a JSON object")
            kind = kind or _kind(record)
            items.append((place, kind.parse(record)))
    except BadItem as error:
        # errors of the syntax have no item, and say their line themselves
        where = "" if str(error).startswith("line ") else f"{place}: "
        raise MiniCacheError(f"{path}, {where}{error}") from None
    if kind is None:
        raise MiniCacheError(f"the task {path} has no item; give a file of JSON lines, or of bAbI")
    return TaskFile(path.stem, kind, items)


def _kind(record: dict[str, Any]) -> FileKind:
    for kind in FILE_KINDS:
        if kind.recognises(record):
            return kind
    keys = ", ".join(map(str, record)) or "none"
    raise BadItem(
        f"no kind of task has these keys: {keys}; give question, choices and answer, or what else "
        "docs/evaluation.md lists"
    )


def _records(text: str) -> Iterator[tuple[str, Any]]:
    """(place, record) of each item."""
    begun = text.lstrip("\ufeff \t\r\n")[:1]
    if begun == "[":
        try:
            records = json.loads(text.lstrip("\ufeff"))
        except ValueError as error:
            raise BadItem(_syntax(error)) from None
        yield from ((f"item {number}", record) for number, record in enumerate(records, 1))
    elif begun.isdigit():
        yield from ((f"line {number}", record) for number, record in babi.records(text.splitlines()))
    else:
        for number, line in enumerate(text.lstrip("\ufeff").split("\n"), 1):
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise BadItem(f"line {number}: {_syntax(error)}") from None
                yield f"line {number}", record


def _syntax(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        where = f"line {error.lineno}: " if error.lineno > 1 else ""
        return f"{where}not JSON ({error.msg}, column {error.colno})"
    return f"not JSON ({error})"

"""Files that are replaced as a whole."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block succeeds and is removed otherwise.

    Whoever reads `path` finds the old file or the new one whole, whatever ends this process. OSErrors, of the block or
    of the renaming, are the caller's to explain.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def read_json(path: Path, default: Any) -> Any:
    """What a file of JSON holds; `default` where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Replaces the file by this value as JSON."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=indent), encoding="utf-8")

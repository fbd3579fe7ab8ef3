"""Files that are replaced as a whole, files that must not be, and disks that are full."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import MiniCacheError
from .units import MIB

# seconds after which a file that nobody writes to is not written any more
ABANDONED = 3600.0
# of errors of a disk that has no more room: full, over a quota, or over a limit on the size of files
NO_ROOM = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place when the block succeeds and is removed otherwise.

    Whoever reads `path` finds the old file or the new one whole, whatever ends this process. What a killed process has
    left is removed by the next that writes the same file, once it is an hour old. OSErrors, of the block or of the
    renaming, are the caller's to explain.
    """
    _remove_abandoned(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()


def _remove_abandoned(path: Path) -> None:
    """Removes what processes that were killed have left beside `path`: nobody has written to it for an hour."""
    with contextlib.suppress(OSError):
        for one in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
            if time.time() - one.stat().st_mtime > ABANDONED:
                one.unlink()


def refuse_to_write(path: Path, kind: str, is_one: Callable[[Path], bool]) -> None:
    """Raises MiniCacheError where a file of this kind cannot be written, before any work is done for it.

    A file that is there already may be replaced only if it is of the same kind: `is_one` says so, and `kind` names it,
    such as "a plan".
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise MiniCacheError(f"{path} cannot be written: give the path of a file in a folder that exists")
    # what is no file, such as a device or a pipe, is not even read
    if os.path.exists(path) and not (path.is_file() and is_one(path)):
        raise MiniCacheError(f"{path} is there already and is not {kind}; give the path of a new file")
    try:
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise MiniCacheError(f"{path} cannot be written: {error.strerror or error}") from error


def refuse_streams(path: Path) -> None:
    """Raises MiniCacheError for pipes and devices: they may be waited for, or not end, and can be read only once."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise MiniCacheError(f"{path} is a pipe or a device; write what it gives to a file, and name that")


def begins_with(path: Path, *beginnings: bytes) -> bool:
    """Whether a file can be read and begins with one of these."""
    try:
        with path.open("rb") as file:
            return file.read(max(map(len, beginnings), default=0)).startswith(beginnings)
    except OSError:
        return False


def read_json(path: Path, default: Any) -> Any:
    """What a file of JSON holds; `default` where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Replaces the file by this value as JSON."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=indent), encoding="utf-8")


def has_no_room(error: BaseException | None) -> bool:
    """Whether a disk without room is behind an error: the error itself, or what it was raised from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return True
        error = error.__cause__
    return False


def reserve(file: IO[bytes], n_bytes: int) -> None:
    """Makes a file so long, with room on the disk for all of it. Raises OSError where there is not so much.

    Whoever maps a file into memory that was only given its length is ended by a signal where the disk is full.
    """
    try:
        os.posix_fallocate(file.fileno(), 0, n_bytes)
        return
    except AttributeError:  # not every system has it
        pass
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
    for begin in range(0, n_bytes, MIB):
        file.write(bytes(min(MIB, n_bytes - begin)))
    file.flush()

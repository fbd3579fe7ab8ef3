"""A folder for work that continues where it was interrupted, used by one process at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from .files import has_no_room
from .units import MIB

WAIT = 0.5  # seconds between two looks at a lock
LITTLE = 16 * MIB  # of free bytes, with which a disk counts as full
STALE = 7 * 24 * 3600.0  # seconds without a change after which a folder is considered abandoned


@contextlib.contextmanager
def work_folder(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """The folder, once no other process uses it; `on_wait` is called every half second until then.

    It is removed when the block succeeds, and kept for the next run when it fails, unless its disk is full.
    """
    with locked(path.with_name(f"{path.name}.lock"), on_wait):
        path.mkdir(exist_ok=True)
        try:
            yield path
        except Exception as error:
            # an error may come from another disk, on which a temporary file or the result lies
            if has_no_room(error) and (isinstance(error, OSError) or shutil.disk_usage(path).free < LITTLE):
                shutil.rmtree(path, ignore_errors=True)
            raise
        shutil.rmtree(path, ignore_errors=True)


def remove_stale(parent: Path, seconds: float = STALE) -> None:
    """Removes the work folders in `parent` in which nothing has changed for so long: killed processes leave them."""

    def in_use() -> None:
        raise BlockingIOError

    for folder in parent.iterdir() if parent.is_dir() else ():
        with contextlib.suppress(OSError):
            if _is_abandoned(folder, seconds):
                with locked(folder.with_name(f"{folder.name}.lock"), in_use):
                    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder that is removed at the end, also by an error; those that killed processes left are removed before."""
    prefix = f"minicache-{purpose}-"
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if _is_abandoned(folder, STALE):
                shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        yield Path(name)


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which is made if there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def locked(path: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the lock that the file `path` is, for this process alone; `on_wait` is called until it is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as lock:
            while not _locked(lock):
                on_wait()
                time.sleep(WAIT)
            # whoever held the lock has removed the file, and another process may hold a new one by now
            if not _is_file(lock, path):
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _is_abandoned(folder: Path, seconds: float) -> bool:
    """Whether nothing in a folder has changed for so long."""
    changed = max(one.stat().st_mtime for one in (folder, *folder.iterdir()))
    return time.time() - changed > seconds


def _is_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _locked(file: IO[str]) -> bool:
    """Lock the file for this process, which releases it when it ends; False where another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

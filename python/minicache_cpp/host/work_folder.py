"""A folder for work that goes on where it was cut off, for one process at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def work_folder(path: Path) -> Iterator[Path]:
    """The folder, or another while a process works in it already; removed when all is done, kept when it failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_name(f"{path.name}.lock")
    with lock_path.open("w") as lock:
        alone = _locked(lock)
        folder = path if alone else path.with_name(f"{path.name}-{os.getpid()}")
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException:
            if not alone:  # nobody would find it again
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    if alone:
        with contextlib.suppress(OSError):
            lock_path.unlink()


def _locked(file: IO[str]) -> bool:
    """Whether this process alone has the file from here on; the system lets go of it when the process ends."""
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

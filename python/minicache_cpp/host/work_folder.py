"""A folder for work that continues where it was interrupted, used by one process at a time."""

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
    """The folder, or another one beside it while another process uses it.

    It is removed when the block succeeds, and kept for the next run when it fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_name(f"{path.name}.lock")
    with lock_path.open("w") as lock:
        alone = _locked(lock)
        folder = path if alone else path.with_name(f"{path.name}-{os.getpid()}")
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        except BaseException:
            if not alone:  # no later run would look for it
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
    if alone:
        with contextlib.suppress(OSError):
            lock_path.unlink()


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

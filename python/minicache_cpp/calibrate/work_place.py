"""The folder that a calibration works in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import MiniCacheError
from ..host.progress import Progress
from ..host.user_cache import VARIABLE, cache_dir
from ..host.work_folder import is_writable, remove_stale, temporary_folder, work_folder


@contextlib.contextmanager
def working(key: str, output: Path | None, progress: Progress) -> Iterator[Path]:
    """The folder of the calibrations with this key, whose work the next one continues.

    Where no such folder can be written and the plan goes to `output`, it is a temporary one. Raises MiniCacheError
    where the plan could not be written either, and where the disk is full; then what was begun is removed.
    """

    def on_wait() -> None:
        progress(0, "waiting for another calibration of this model")

    try:
        with contextlib.ExitStack() as stack:
            if output is not None and not _is_kept():
                folder = stack.enter_context(temporary_folder("calibrate"))
            else:
                remove_stale(cache_dir() / "calibrations")
                folder = stack.enter_context(work_folder(cache_dir() / "calibrations" / key, on_wait))
            yield folder
    except OSError as error:
        # -o helps where no work can be kept, but not where there is a folder whose disk is full
        otherwise = ", or give -o PLAN" if output is None and not _is_kept() else ""
        raise MiniCacheError(
            f"the calibration cannot write its files: {error}; name a folder that has room for them with "
            f"{VARIABLE}{otherwise}"
        ) from error


def _is_kept() -> bool:
    """Whether work can be kept for the next calibration."""
    try:
        return is_writable(cache_dir() / "calibrations")
    except MiniCacheError:
        return False

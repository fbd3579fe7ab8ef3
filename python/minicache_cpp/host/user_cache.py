"""Where this package keeps files for the user: plans, and the results of unfinished calibrations."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import MiniCacheError
from .paths import user_path

VARIABLE = "MINICACHE_CACHE_DIR"


def cache_dir() -> Path:
    """The folder that MINICACHE_CACHE_DIR names, or one in the user's cache directory.

    Raises MiniCacheError where there is no home folder for one.
    """
    try:
        return _cache_dir()
    except RuntimeError:  # of Path.home()
        raise MiniCacheError(
            f"there is no home folder to keep plans and models in; name a folder with {VARIABLE}"
        ) from None


def _cache_dir() -> Path:
    if override := os.environ.get(VARIABLE):
        return user_path(override)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "minicache-cpp"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
        return Path(base) / "minicache-cpp"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "minicache-cpp"
    return Path.home() / ".cache" / "minicache-cpp"

"""Where this package keeps files for the user: plans, and what a calibration has done so far."""

from __future__ import annotations

import os
import sys
from pathlib import Path

VARIABLE = "MINICACHE_CACHE_DIR"


def cache_dir() -> Path:
    """MINICACHE_CACHE_DIR, or a folder in the user's cache directory."""
    if override := os.environ.get(VARIABLE):
        return Path(override)
    home = Path.home()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else home / "AppData" / "Local") / "minicache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "minicache"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else home / ".cache") / "minicache"

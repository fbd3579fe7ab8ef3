"""Paths as people give and read them."""

from __future__ import annotations

import os
from pathlib import Path


def name_shown(path: str | os.PathLike[str]) -> str:
    """The name of a file as text: bytes in it that are not UTF-8 are question marks."""
    return Path(path).name.encode("utf-8", "replace").decode("utf-8")

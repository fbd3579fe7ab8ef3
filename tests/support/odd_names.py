"""Files whose names are not UTF-8."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ODD_NAMES = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")


def oddly_named(path: Path, folder: Path) -> Path:
    """A link to a file, in a folder, with a byte in its name that is not UTF-8."""
    link = folder / os.fsdecode(b"odd\xff" + os.fsencode(path.suffix))
    link.symlink_to(path)
    return link

"""Where PyInstaller finds what a frozen app needs of this package; pyproject.toml names it as an entry point."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """The directory of hook-minicache_cpp.py."""
    return [str(Path(__file__).parent)]

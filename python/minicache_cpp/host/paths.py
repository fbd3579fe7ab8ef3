"""Paths as people give and read them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..errors import MiniCacheError

EMPTY = "the path is empty; name a file or a folder (. is the current one)"


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user has named, in which ~ at the beginning is a home folder, though no shell has seen to it.

    Raises MiniCacheError where that folder is not known, and for an empty text, which Path takes for this folder.
    """
    if not os.fspath(path):
        raise MiniCacheError(EMPTY)
    given = Path(path)
    expanded = Path(os.path.expanduser(given))
    # where it is all of the path, ~name may well be the name of a file, as it is to a shell
    if expanded == given and len(given.parts) > 1 and given.parts[0].startswith("~"):
        raise MiniCacheError(f"{given} names a home folder that is not known; write the path in full")
    return expanded


def path_option(text: str) -> Path:
    """The type of options that name a file or a folder: an empty text is not the current one."""
    if not text:
        raise argparse.ArgumentTypeError(EMPTY)
    return Path(text)


def name_shown(path: str | os.PathLike[str]) -> str:
    """The name of a file as text: bytes in it that are not UTF-8 are question marks."""
    return Path(path).name.encode("utf-8", "replace").decode("utf-8")

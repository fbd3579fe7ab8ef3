"""Where llama-server lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..errors import MiniCacheError
from ..host.paths import user_path
from ..native import library

NAME = "llama-server.exe" if sys.platform == "win32" else "llama-server"
# a folder of upstream's programs, built from the patched tree
TOOLS = "MINICACHE_TOOLS_BIN"


def find_server() -> Path:
    """The llama-server of the folder of programs, or of the libraries in use, or of the installed package.

    Raises MiniCacheError, saying how to get one, where there is none.
    """
    named = [os.environ[name] for name in (TOOLS, library.OVERRIDE) if os.environ.get(name)]
    folders = [*map(user_path, named), library.INSTALLED]
    for folder in folders:
        # a relative path of one part would be looked for on the PATH
        path = (folder / NAME).absolute()
        if path.is_file():
            return path
    raise MiniCacheError(
        f"{NAME} is not in {', '.join(map(str, folders))}; `pip install .` builds it beside the libraries unless "
        f"MINICACHE_SERVER is OFF, `python3 scripts/bootstrap.py serve` does in a checkout, and {TOOLS} names the "
        "folder of one that is built"
    )

"""llama-cpp-python without its native half, which is made from the archive that our build has fetched.

There is no such wheel on PyPI. Imported before minicache_cpp, it would look for a library of its own and not find one,
so ours begins with a hook.
"""

from __future__ import annotations

import shutil
from pathlib import Path

INIT = "llama_cpp/__init__.py"
# Before llama_cpp loads its native library: minicache_cpp, where it is installed, names its own in this variable. What
# the variable names already is left to the user.
HOOK = """\
# minicache-cpp: this build of llama_cpp has no native library of its own and uses that of minicache_cpp.
import os as _os

if not _os.environ.get("LLAMA_CPP_LIB_PATH"):
    try:
        import minicache_cpp as _minicache_cpp
    except ModuleNotFoundError:
        pass

"""
# what CMAKE_ARGS must be when the wheel is made
NO_NATIVE_HALF = "-DLLAMA_BUILD=OFF"


def unpack_python_half(archive: Path, folder: Path) -> Path:
    """Unpacks llama-cpp-python's source distribution into `folder`, and adds the hook.

    Returns the directory of the sources, of which pip makes a wheel where CMAKE_ARGS is NO_NATIVE_HALF.
    """
    shutil.unpack_archive(archive, folder)
    sources = folder / archive.name.removesuffix(".tar.gz")
    init = sources / INIT
    init.write_text(HOOK + init.read_text(encoding="utf-8"), encoding="utf-8")
    return sources

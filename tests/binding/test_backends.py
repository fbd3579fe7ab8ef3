"""With GGML_BACKEND_DL the CPU backend is loaded at run time. A stand-in for libggml records what is asked of it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from minicache_cpp.native import library

COMPILER = shutil.which("cc")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs cc")

SOURCE = """
#include <stddef.h>
#include <string.h>
static size_t count = {linked};
static char loaded[4096];
size_t ggml_backend_reg_count(void) {{ return count; }}
void ggml_backend_load_all_from_path(const char * path) {{ strncpy(loaded, path, 4095); count += {found}; }}
void * ggml_backend_load(const char * path) {{
    strncpy(loaded, path, 4095);
    return {found} ? loaded : NULL;
}}
const char * loaded_from(void) {{ return loaded; }}
"""


def stand_in(folder: Path, linked: int, found: int) -> ctypes.CDLL:
    """Builds a libggml in `folder` that has `linked` backends and finds `found` more."""
    path = folder / library.file_names("ggml")[0]
    source = folder / "ggml.c"
    source.write_text(SOURCE.format(linked=linked, found=found))
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    ggml = ctypes.CDLL(str(path))
    ggml.loaded_from.restype = ctypes.c_char_p
    return ggml


def test_backends_that_are_libraries_are_loaded(tmp_path: Path) -> None:
    ggml = stand_in(tmp_path, linked=0, found=1)
    library.load_backends(tmp_path)
    assert ggml.loaded_from() == bytes(tmp_path)


def test_backends_that_are_linked_are_enough(tmp_path: Path) -> None:
    ggml = stand_in(tmp_path, linked=1, found=1)
    library.load_backends(tmp_path)
    assert ggml.loaded_from() == b""


def test_no_backend_is_an_error(tmp_path: Path) -> None:
    stand_in(tmp_path, linked=0, found=0)
    with pytest.raises(ImportError, match="no library of ggml that runs on this machine"):
        library.load_backends(tmp_path)


def test_a_backend_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is ggml's own, which llama.cpp's programs read too."""
    for found in (1, 0):
        folder = tmp_path / str(found)
        folder.mkdir()
        ggml = stand_in(folder, linked=1, found=found)
        monkeypatch.setenv(library.MORE_DEVICES, "/elsewhere/libggml-new.so")
        if found:
            library.load_backends(folder)
        else:
            with pytest.raises(
                ImportError, match=r"GGML_BACKEND_PATH is /elsewhere/libggml-new\.so, which is no"
            ):
                library.load_backends(folder)
        assert ggml.loaded_from() == b"/elsewhere/libggml-new.so"

"""With GGML_BACKEND_DL the CPU backend is loaded at run time. A stand-in for libggml records what is asked of it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from minicache_cpp.native import devices, library

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
typedef void (*log_callback)(int level, const char * text, void * data);
static log_callback log_now;
static void * log_data;
void ggml_log_get(log_callback * callback, void ** data) {{ *callback = log_now; *data = log_data; }}
void ggml_log_set(log_callback callback, void * data) {{ log_now = callback; log_data = data; }}
void say(int level, const char * text) {{ log_now(level, text, log_data); }}
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


def test_loading_is_silent_but_for_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Afterwards whoever received ggml's log before does so again."""
    ggml = stand_in(tmp_path, linked=0, found=1)
    heard: list[tuple[int, bytes]] = []
    before = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
        lambda level, text, _: heard.append((level, text))
    )
    ggml.ggml_log_set(before, None)
    with library.errors_only(ggml):
        ggml.say(2, b"loaded a library\n")
        ggml.say(library.LOG_ERROR, b"no such file\n")
    ggml.say(2, b"later\n")
    assert capsys.readouterr().err == "no such file\n"
    assert heard == [(2, b"later\n")]


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


def test_the_file_of_the_kernels_in_use(library_dir: Path) -> None:
    path = devices.cpu_library()
    assert path is not None and path.parent == library_dir and "ggml-cpu" in path.name

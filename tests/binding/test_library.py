"""The libraries are loaded once, from one place, and belong to the installed llama_cpp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from minicache_cpp.native import library
from support.paths import ROOT


def python(program: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )


def test_another_library_is_an_import_error_that_helps() -> None:
    program = """
import ctypes, ctypes.util, sys, types
package, bindings = types.ModuleType("llama_cpp"), types.ModuleType("llama_cpp.llama_cpp")
bindings._lib = ctypes.CDLL(ctypes.util.find_library("m"))
sys.modules["llama_cpp"], sys.modules["llama_cpp.llama_cpp"] = package, bindings
import minicache_cpp
"""
    done = python(program)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: llama_cpp was imported earlier")
    assert "import minicache_cpp before" in last
    assert f"LLAMA_CPP_LIB_PATH={library.library_dir()}" in last


@pytest.mark.parametrize(
    "program",
    ["import minicache_cpp, llama_cpp._ggml as ggml; ggml.libggml; from minicache_cpp import Llama",
     "from minicache_cpp import Llama, kernels; from llama_cpp._ggml import libggml"],
)  # fmt: skip
def test_llama_cpp_gets_our_libraries_and_no_others(program: str) -> None:
    program += """
import sys
from pathlib import Path
maps = Path("/proc/self/maps")
if maps.exists():
    print(len({line.split()[-1] for line in maps.read_text().splitlines() if "libggml-base" in line}))
else:
    print(1)
"""
    done = python(program)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("named", [False, True])
def test_llama_cpp_may_come_first(named: bool) -> None:
    """As we install it, and in any case where our library is named by the command of docs/api.md."""
    command = "import minicache_cpp, os; print(os.environ['LLAMA_CPP_LIB_PATH'])"
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert f'export LLAMA_CPP_LIB_PATH=$(python -c "{command}")' in text
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    if named:
        environment["LLAMA_CPP_LIB_PATH"] = python(command, environment).stdout.strip()
    program = (
        "import llama_cpp; from minicache_cpp import Llama, kernels; print(llama_cpp.llama_cpp._lib._name)"
    )
    done = python(program, environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).parent == library.library_dir()


def test_llama_cpp_says_where_no_library_was_found(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    done = python("import llama_cpp", {**environment, "MINICACHE_LIB_PATH": str(tmp_path)})
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: MINICACHE_LIB_PATH is {tmp_path}")


def test_minicache_can_be_imported_after_llama_cpp_has_failed() -> None:
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": "/nowhere"}
    program = """
try:
    import llama_cpp
except FileNotFoundError as error:
    print(error)
from minicache_cpp import Llama
"""
    done = python(program, environment)
    assert (done.stdout, done.stderr) == ("Shared library with base name 'llama' not found\n", "")


def test_an_empty_library_directory_is_reported(tmp_path: Path) -> None:
    environment = {**os.environ, "MINICACHE_LIB_PATH": str(tmp_path)}
    done = python("from minicache_cpp import Llama", environment)
    assert f"MINICACHE_LIB_PATH is {tmp_path}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("module", ["minicache_cpp", "minicache_cpp.chat"])
def test_a_command_reports_it_in_one_line(tmp_path: Path, module: str) -> None:
    environment = {**os.environ, "MINICACHE_LIB_PATH": str(tmp_path)}
    words = [*(["chat"] if module == "minicache_cpp" else []), "none.gguf", "--prompt", "hi"]
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"minicache: MINICACHE_LIB_PATH is {tmp_path}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("version", ["0.3.35", "0.4.0"])
def test_another_version_of_llama_cpp_is_refused(version: str) -> None:
    with (
        mock.patch("importlib.metadata.version", return_value=version),
        pytest.raises(ImportError, match=f"0.3.36.*found {version}"),
    ):
        library.check_version()

"""llama-cpp-python without its native half: what is added to it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from python_half import HOOK, INIT, unpack_python_half

MINE = """\
import sys

sys.modules["minicache_cpp"] = None if sys.argv[1] == "missing" else sys
import llama_cpp

print(llama_cpp.value, "_minicache_cpp" in vars(llama_cpp))
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    archive = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        content = b"value = 7\n"
        member = tarfile.TarInfo(f"llama_cpp_python-0.3.36/{INIT}")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return unpack_python_half(archive, tmp_path / "sources")


def test_the_hook_comes_before_everything_else(sources: Path) -> None:
    assert (sources / INIT).read_text(encoding="utf-8") == HOOK + "value = 7\n"


@pytest.mark.parametrize(
    ("installed", "variable", "imported"),
    [("there", None, True), ("missing", None, False), ("there", "", True), ("there", "/elsewhere", False)],
)
def test_our_package_is_imported_unless_a_library_is_named(
    sources: Path, installed: str, variable: str | None, imported: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    environment["PYTHONPATH"] = str(sources)
    if variable is not None:
        environment["LLAMA_CPP_LIB_PATH"] = variable
    command = [sys.executable, "-c", MINE, installed]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == (f"7 {imported}\n", "")

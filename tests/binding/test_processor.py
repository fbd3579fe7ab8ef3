"""A library for a newer processor is refused before it is loaded, in a sentence."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from minicache_cpp.native import library, processor

linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="asks glibc and /proc/cpuinfo"
)


def write_library(path: Path, needs: str) -> Path:
    path.write_bytes(b"\x7fELF\0" + f"minicache-needs:{needs}\n".encode() + b"\0more")
    return path


def test_what_a_library_needs_stands_in_its_file(tmp_path: Path) -> None:
    assert processor.needs(write_library(tmp_path / "a.so", " avx2 fma")) == ["avx2", "fma"]
    assert processor.needs(write_library(tmp_path / "b.so", "")) == []
    silent = tmp_path / "c.so"
    silent.write_bytes(b"\x7fELF")
    assert processor.needs(silent) == []


def test_our_kernels_say_what_they_need(library_dir: Path) -> None:
    """Each of them carries the text, and one can run here, as it has been loaded."""
    kernels = [path for path in library_dir.glob("*ggml-cpu*") if path.suffix in library.SUFFIXES]
    assert kernels
    assert all(path.read_bytes().count(processor.MARK) == 1 for path in kernels)
    assert processor.lacking(kernels) == []


def test_one_library_that_runs_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset({"avx"}))
    old, new, newer = (
        write_library(tmp_path / f"{number}.so", needs)
        for number, needs in enumerate((" avx", " avx avx2", " avx avx2 avx512f"))
    )
    assert processor.lacking([newer, new, old]) == []
    assert processor.lacking([newer, new]) == ["avx2"]
    assert processor.lacking([newer]) == ["avx2", "avx512f"]
    assert processor.lacking([]) == []
    monkeypatch.setattr(processor, "features", lambda: None)
    assert processor.lacking([newer]) == []


@linux_x86
def test_two_ways_to_ask_agree() -> None:
    """glibc's answer, by the bits of the table, and /proc/cpuinfo's, by name."""
    by_glibc, by_cpuinfo = processor._features_by_glibc(), processor._features_by_cpuinfo()
    if by_glibc is None or by_cpuinfo is None:
        pytest.skip("glibc is older than 2.33, or there is no /proc")
    # the kernel lists what it has names for, and that is more with each version
    assert by_cpuinfo & set(processor.X86) <= by_glibc
    assert "sse3" in by_glibc


@pytest.mark.skipif(processor.features() is None, reason="the processor is not asked on this system")
def test_a_processor_that_is_too_old_gets_a_sentence(tmp_path: Path) -> None:
    """Nothing is loaded: the files are no libraries."""
    for base in ("llama", "ggml-cpu"):
        write_library(tmp_path / library.file_names(base)[0], " sse3 time_travel")
    environment = {**os.environ, "MINICACHE_LIB_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import minicache_cpp"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: the libraries in {tmp_path} were built for a processor")
    assert "time_travel, which this one (" in last
    assert "pip install" in last

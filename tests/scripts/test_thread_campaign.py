"""scripts/campaigns threads: a short run finds nothing, and what the program reports is found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from campaigns.__main__ import main
from support.paths import required

RACE = "SUMMARY: ThreadSanitizer: data race llama-minicache-calls.cpp:35 in llama_minicache_stop"


def campaign(
    capsys: pytest.CaptureFixture[str], program: Path, *arguments: str
) -> tuple[int, dict[str, Any]]:
    code = main(["threads", "--program", str(program), "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_threads_compute_what_one_computes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    program = required("MINICACHE_THREADS", "minicache-threads, built with -DMINICACHE_TESTS=ON")
    code, found = campaign(capsys, program, "--steps", "2")
    assert found["findings"] == []
    assert code == 0
    assert found["counts"]["runs"] == 2
    assert found["counts"]["batches that another thread has ended"] == 2 * 3 * 4


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("script", "what"),
    [
        (
            f'echo \'{RACE}\' >&2; echo \'{{"threads": 1, "rounds": 1, "ended": 1, "found": 0}}\'; exit 66',
            "data race",
        ),
        ("echo 'found: a thread computes something else' >&2; exit 1", "found: a thread"),
        ("kill -SEGV $$", "SIGSEGV"),
    ],
)
def test_what_the_program_reports_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, script: str, what: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    code, found = campaign(capsys, program, "--steps", "1")
    assert code == 1
    assert what in found["findings"][0]["what"]


def test_without_the_program_it_says_how_to_build_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["threads", "--program", str(tmp_path / "none")]) == 2
    assert "--target minicache-threads" in capsys.readouterr().err

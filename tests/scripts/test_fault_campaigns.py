"""scripts/campaigns faults: a short run of each kind finds nothing, and faults that were planted are found."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import pytest

from campaigns.__main__ import main
from campaigns.commands import INTERRUPTED, KILLED, ON_FULL_DISKS
from campaigns.memory_operations import GUARDED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits and its ways to mount")
# compiles a small library
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


def campaign(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["faults", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@needs_compiler
def test_allocations_that_fail_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = campaign(capsys, "--kind", "memory", "--steps", "300")
    assert found["findings"] == []
    assert code == 0
    counts = found["counts"]
    assert counts["failed allocations"] == 300
    for name in GUARDED:
        assert sum(counts.get(f"failed allocations in {name}, {how}", 0) for how in HOW) > 0
    # most failures end in a refusal
    assert sum(n for name, n in counts.items() if name.endswith("refused")) > 100


HOW = ("refused", "done all the same", "without a failure")


@needs_compiler
def test_an_allocation_that_ends_the_process_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = campaign(capsys, "--kind", "memory", "--only", "unguarded", "--steps", "3")
    assert code == 1
    assert any("SIGABRT" in one["what"] for one in found["findings"])


@pytest.mark.parametrize("name", ON_FULL_DISKS)
def test_full_disks_do_no_harm(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, found = campaign(capsys, "--kind", "disk", "--only", name, "--steps", "3")
    assert found["findings"] == []
    assert code == 0
    assert sum(found["counts"].values()) == 3
    assert found["counts"][f"disk: {name}, refused"] > 0


def test_killed_processes_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = campaign(capsys, "--kind", "kill", "--steps", "2")
    assert found["findings"] == []
    assert code == 0
    assert sum(found["counts"].values()) == 2 * len(KILLED)


def test_interrupted_processes_do_no_harm(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = campaign(capsys, "--kind", "interrupt", "--steps", "3")
    assert found["findings"] == []
    assert code == 0
    assert sum(found["counts"].values()) == 3 * len(INTERRUPTED)
    assert found["counts"]["interrupt: calibrate, interrupted"] > 0


@pytest.mark.parametrize("kind", ["disk", "kill"])
def test_a_program_that_writes_over_the_old_file_is_found(
    capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    code, found = campaign(capsys, "--kind", kind, "--only", "careless", "--steps", "8")
    assert code == 1
    assert found["counts"][f"findings of {kind}: careless"] > 0

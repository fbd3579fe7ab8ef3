"""Upstream's own tests, built from the patched tree."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from conftest import Loaded


def run(tool: Path, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit status and output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    result = subprocess.run(
        [tool, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=cwd,
        env=clean | environment,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


# Flash attention has thousands of cases: the ordinary head sizes and cache types stand for them.
CASES = {
    "SET_ROWS": ".*",
    "FLASH_ATTN_EXT": r"hsk=(64|80|128|256),.*kv=(113|512|1024),.*type_K=(f16|bf16|q8_0|q4_0),",
}


@pytest.mark.parametrize("op", CASES)
def test_backend_ops(tools_dir: Path, tmp_path: Path, op: str) -> None:
    tool = tools_dir / "test-backend-ops"
    status, output = run(tool, "test", "-o", op, "-p", CASES[op], "-b", "CPU", cwd=tmp_path)
    assert status == 0, output[-4000:]
    passed = re.search(r"(\d+)/(\d+) tests passed", output)
    assert passed, output[-4000:]
    assert passed[1] == passed[2]
    assert int(passed[2]) >= 100


# Upstream's ninth test switches flash attention off, which merged layers refuse.
PASSED_WITH_MINICACHE = 7


def test_save_load_state(tools_dir: Path, load: Callable[..., Loaded], tmp_path: Path) -> None:
    model = load(tiny_models.random_model, head_size=64).path
    status, output = run(tools_dir / "test-save-load-state", "-m", str(model), cwd=tmp_path)
    assert status == 0, output[-4000:]
    assert "All tests passed" in output


@pytest.mark.parametrize("settings", ["start=0.5,t=0.6,retain=0.05", "start=0.0,retain=0.3,pool=f16"])
def test_save_load_state_of_merged_layers(
    tools_dir: Path, load: Callable[..., Loaded], tmp_path: Path, settings: str
) -> None:
    """Generation goes on the same after the state, or one sequence, was saved and restored or copied."""
    model = load(tiny_models.random_model, head_size=64).path
    tool = tools_dir / "test-save-load-state"
    status, output = run(tool, "-m", str(model), cwd=tmp_path, LLAMA_MINICACHE=settings)
    assert "FAIL" not in output
    assert len(re.findall(r"^PASS$", output, re.MULTILINE)) == PASSED_WITH_MINICACHE, output[-4000:]
    assert status == 1
    assert "merged layers need flash attention" in output.splitlines()[-2]

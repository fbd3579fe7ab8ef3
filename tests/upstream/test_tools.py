"""Upstream's own tests, built from the patched tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from support import tiny_models
from support.loaded import Loaded


def run(tool: Path, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Runs a tool in `cwd`, and returns its exit status and output."""
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


# Flash attention has thousands of cases; the common head sizes and cache types stand for all of them.
CASES = {
    "SET_ROWS": ".*",
    "FLASH_ATTN_EXT": r"(hsk=(64|80|128|256),.*kv=113,|hsk=64,.*kv=512,nb=(1|3),).*type_K=(f16|bf16|q8_0|q4_0),",
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


def save_load_results(tools_dir: Path, loaded: Loaded, directory: Path, **environment: str) -> dict[str, str]:
    """The result of each of upstream's save and restore tests, from the table that the tool prints."""
    shutil.copy(loaded.path, directory / "tiny.gguf")
    tool = tools_dir / "test-save-load-state"
    _, output = run(tool, "--models", str(directory), cwd=directory, **environment)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()
    names = next((line.split()[1:] for line in lines if line.startswith("Model")), [])
    results = next((line.split()[1:] for line in lines if line.startswith("tiny.gguf")), [])
    assert names and len(names) == len(results), output
    return dict(zip(names, results, strict=True))


def test_save_load_state(tools_dir: Path, load: Callable[..., Loaded], tmp_path: Path) -> None:
    results = save_load_results(tools_dir, load(tiny_models.random_model, head_size=64), tmp_path)
    assert set(results.values()) == {"PASS"}
    assert len(results) == 9


@pytest.mark.parametrize(
    "settings", ["slerp:start=0.5,t=0.6,retain=0.05", "slerp:start=0.0,retain=0.3,pool=f16"]
)
def test_save_load_state_of_merged_layers(
    tools_dir: Path, load: Callable[..., Loaded], tmp_path: Path, settings: str
) -> None:
    """Generation continues in the same way after the state or a sequence was saved and restored, or copied."""
    loaded = load(tiny_models.random_model, head_size=64)
    results = save_load_results(tools_dir, loaded, tmp_path, LLAMA_MINICACHE=settings)
    # the test of a failing restore switches flash attention off, which merged layers need
    assert results.pop("rf") == "FAIL"
    assert set(results.values()) == {"PASS"}
    assert len(results) == 8

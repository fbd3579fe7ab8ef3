"""The native test binary, plain and built with the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import re
import subprocess

import pytest
from conftest import required

BUILDS = {
    "plain": "MINICACHE_NATIVE_TEST",
    "sanitized": "MINICACHE_NATIVE_TEST_SAN",
}


def run(build: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    binary = required(BUILDS[build], "minicache-test, built with -DMINICACHE_TESTS=ON")
    strict = os.environ | {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    return subprocess.run(
        [binary, *arguments], capture_output=True, text=True, timeout=300, env=strict, check=False
    )


@pytest.mark.parametrize("build", BUILDS)
def test_ops(build: str) -> None:
    result = run(build)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "runtime error" not in result.stderr
    passed = re.search(r"(\d+) of (\d+) tests passed", result.stdout)
    assert passed, result.stdout
    assert passed[1] == passed[2]
    assert int(passed[2]) > 500  # a filter or a lost list would pass with next to nothing


@pytest.mark.parametrize("build", BUILDS)
def test_other_seeds(build: str) -> None:
    result = run(build, "-s", "1000", "-o", "n_tps=2,")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def test_speed_can_be_measured() -> None:
    result = run("plain", "perf", "-o", "MERGE")
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^MERGE\(.*GB/s$", result.stdout, re.MULTILINE)) == 3


def test_usage() -> None:
    assert "usage:" in run("plain", "--help").stdout
    assert run("plain", "--nonsense").returncode == 2
    assert run("plain", "-o", "no such case").returncode == 1

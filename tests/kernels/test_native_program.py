"""minicache-test, the native tests, in a plain build and in one with address and undefined-behaviour sanitizers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from support.paths import required

BUILDS = {
    "plain": "MINICACHE_NATIVE_TEST",
    "sanitized": "MINICACHE_NATIVE_TEST_SAN",
}


def run(build: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    binary = required(BUILDS[build], "minicache-test, built with -DMINICACHE_TESTS=ON")
    strict = os.environ | {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    return subprocess.run(
        [binary, *arguments], capture_output=True, text=True, timeout=timeout, env=strict, check=False
    )


@pytest.mark.parametrize("build", BUILDS)
def test_ops(build: str) -> None:
    result = run(build)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "runtime error" not in result.stderr
    passed = re.search(r"(\d+) of (\d+) tests passed", result.stdout)
    assert passed, result.stdout
    assert passed[1] == passed[2]
    assert int(passed[2]) > 500  # a wrong filter or a lost list would leave few tests


@pytest.mark.parametrize("build", BUILDS)
def test_other_seeds(build: str) -> None:
    result = run(build, "-s", "1000", "-o", "n_tps=2,")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fibers need Linux")
@pytest.mark.parametrize(
    ("build", "cases", "least"),
    [
        ("plain", "", 1200),
        # fibers are slow under sanitizers, so only some cases of each op run
        ("sanitized", "INDEX(", 150),
        ("sanitized", "MERGE(", 80),
        ("sanitized", "RETAIN(", 40),
        ("sanitized", "ENCODE(", 200),
        ("sanitized", "type_v=q5_1", 8),
        ("sanitized", "d_k=128", 30),
    ],
)
def test_cuda_kernels_on_the_cpu(build: str, cases: str, least: int) -> None:
    """The CUDA sources compiled as C++, with each thread as a fiber. See tests/native/cuda-on-cpu."""
    result = run(build, "-d", "cuda-on-cpu0", "-o", cases, timeout=1200)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "runtime error" not in result.stderr
    passed = re.search(r"(\d+) of (\d+) tests passed on cuda-on-cpu0", result.stdout)
    assert passed, result.stdout
    assert int(passed[2]) >= least
    assert "not supported" not in result.stdout  # the CPU's own kernels compute no case


def test_speed_can_be_measured() -> None:
    result = run("plain", "perf", "-o", "MERGE", "--threads", "1", "--seconds", "0.1")
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^MERGE\(.*GB/s$", result.stdout, re.MULTILINE)) == 3


def test_speed_is_compared_with_upstream() -> None:
    options = ["--type", "q4_0,code", "--kv", "1024", "--head-size", "64", "--threads", "1", "--rounds", "1"]
    result = run("plain", "perf", "-o", "ATTN", "--seconds", "0.01", "--json", *options)
    assert result.returncode == 0, result.stderr
    plain, coded = json.loads(result.stdout)["rows"]
    assert [x["name"] for x in plain["results"]] == ["ours", "upstream"]
    assert [x["name"] for x in coded["results"]] == ["ours", "ours q4_0", "upstream q4_0"]
    for row in (plain, coded):
        assert row["threads"] == 1
        for x in row["results"]:
            assert 0 < x["min_us"] <= x["q1_us"] <= x["median_us"] <= x["q3_us"]
            assert x["gbps"] == pytest.approx(x["bytes"] / x["median_us"] * 1e-3, rel=0.01)


@pytest.mark.parametrize(
    "option", [("--kv", "0"), ("--kv", "1,x"), ("--type", "q3_0"), ("--head-size", "40")]
)
def test_bad_options_of_speed(option: tuple[str, str]) -> None:
    assert run("plain", "perf", *option).returncode == 2


def test_usage() -> None:
    assert "usage:" in run("plain", "--help").stdout
    assert run("plain", "--nonsense").returncode == 2
    assert run("plain", "-o", "no such case").returncode == 1
    assert "there is no device" in run("plain", "-d", "no such device").stderr

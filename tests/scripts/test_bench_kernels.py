"""scripts/bench_kernels.py, at sizes too small for the figures to mean anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bench_kernels
from support.paths import required


def test_kernels_are_measured_against_upstreams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = required(
        "MINICACHE_BENCH_KERNELS", "minicache-bench-kernels, of a build with MINICACHE_TESTS=ON"
    )
    path = tmp_path / "kernels.json"
    settings = ["--kv", "64,128", "--batch", "2", "--gqa", "4", "--json", str(path)]
    assert bench_kernels.main(["--device", "CPU", "--bin", str(program.parent), *settings]) == 0
    found = json.loads(path.read_text())
    assert found["copy_gb_s"] > 0
    caches = ("f16", "q8_0", "q4_0")
    expected = [(op, cache) for cache in caches for op in ("flash attention", "minicache")]
    expected += [("minicache", "code 5"), ("minicache", "code 10")]
    assert [(row["n_kv"], row["op"], row["cache"]) for row in found["rows"]] == [
        (n_kv, *one) for n_kv in (64, 128) for one in expected
    ]
    for row in found["rows"]:
        assert 0 < row["least_us"] <= row["us"] <= row["most_us"]
        assert row["gb_s"] == pytest.approx(row["bytes"] / row["us"] * 1e-3, rel=0.02, abs=0.01)
    # at least K and V of two sequences are read, eight heads of 128 each
    assert all(row["bytes"] > 2 * 2 * row["n_kv"] * 8 * 128 / 4 for row in found["rows"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 16 + 2
    assert bench_kernels.main(["--device", "nowhere", "--bin", str(program.parent)]) == 1
    for wrong in ("x", "0", "1,"):
        with pytest.raises(SystemExit):
            bench_kernels.main(["--kv", wrong])

"""scripts/bench_throughput.py, at sizes too small for the figures to mean anything."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bench_throughput
from minicache_cpp import CacheSpec, MiniCacheError
from minicache_cpp.cache.context_report import read_report
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from minicache_cpp.reading.model import NativeModel
from sequences import n_sequences

SPECS = ("f16", "slerp:type=q4_0")


def test_requests_are_like_conversations() -> None:
    requests = bench_throughput.draw_requests(4000)
    prompts, answers = (np.array([getattr(r, name) for r in requests]) for name in ("prompt", "answer"))
    assert prompts.min() >= bench_throughput.SHORTEST and answers.max() == bench_throughput.LONGEST
    # less than the means of the distributions, because the longest are cut
    assert 110 < prompts.mean() < 161 and 180 < answers.mean() < 338
    assert requests == bench_throughput.draw_requests(4000)


def test_throughput_counts_answers(random_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_throughput, "LONGEST", 16)
    with NativeModel(random_gguf) as model:
        spec = CacheSpec.parse(SPECS[1])
        row = bench_throughput.measure(bench_throughput.Service(model, random_gguf, spec, 1 << 20, 64, 1), 5)
    assert row["tokens"] == sum(request.answer for request in bench_throughput.draw_requests(5))
    assert row["sequences"] > 1 and row["kv_bytes"] <= 1 << 20


@pytest.mark.parametrize("spec", ["f16", "slerp:type=q4_0", "5", "plain"])
def test_sequences_fill_the_budget(small_gguf: Path, plans: dict[str, Path], spec: str) -> None:
    cache = CacheSpec.parse(str(plans.get(spec, spec)))
    shape = model_shape(read_gguf(small_gguf))
    budget = 3 << 20
    with NativeModel(small_gguf) as loaded:
        service = bench_throughput.Service(loaded, small_gguf, cache, budget, 256, 1)
        try:
            n, found = service.sequences, read_report(service.ctx).bytes
        finally:
            service.close()
    assert n == n_sequences(shape, cache, 256, budget)
    told = kv_bytes(shape, cache, 256, n)
    assert found <= told <= budget
    assert told - found < 256 * n  # each stream is rounded up; the cache rounds all streams together
    assert kv_bytes(shape, cache, 256, n + 1) > budget
    assert n_sequences(shape, cache, 256, 1000) == 0


def test_full_sequences_decode(small_gguf: Path, plans: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    arguments = [
        str(small_gguf),
        "--device",
        "cpu",
        "--full",
        "--cells",
        "256",
        "--budget",
        "3M",
        "--threads",
        "1",
    ]
    arguments += ["--steps", "2", "--json", str(path), "--config", "f16", "--config", str(plans["5"])]
    assert bench_throughput.main(arguments) == 0
    found = json.loads(path.read_text())
    assert (found["cells"], found["full"], found["threads"]) == (256, True, 1)
    few, many = found["rows"]
    assert many["sequences"] > 2 * few["sequences"]
    assert all(row["tps"] > 0 and row["tokens"] == row["sequences"] for row in found["rows"])
    for wrong in (["--steps", "33"], ["--cells", "63"], ["--budget", "1000"]):
        with pytest.raises(MiniCacheError):
            bench_throughput.main([*arguments, *wrong])

"""GPUs: what is said where there is none, and the scripts that check and measure them, at sizes that mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bench_kernels
import bench_throughput
import compare_devices
import compile_cuda
import random_model
from minicache_cpp import CacheSpec, MiniCacheError
from minicache_cpp.bench.speed import measure
from minicache_cpp.cli import main
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native import devices
from minicache_cpp.reading.model import NativeModel
from support.paths import required

SPECS = ("f16", "slerp:type=q4_0")


@pytest.fixture(scope="module")
def random_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "tiny.gguf"
    assert random_model.main(["tiny", "-o", str(path)]) == 0
    return path


def test_no_gpu_is_said(capsys: pytest.CaptureFixture[str], random_gguf: Path) -> None:
    if devices.gpus():
        pytest.skip("there is one")
    with pytest.raises(MiniCacheError, match="no GPU that these libraries can use"):
        devices.require_gpu()
    assert main(["bench", str(random_gguf), "--device", "cuda"]) == 2
    assert "GGML_CUDA=on" in capsys.readouterr().err
    with pytest.raises(MiniCacheError, match="no GPU"):
        compare_devices.main([str(random_gguf)])


def test_device_and_layers_contradict(capsys: pytest.CaptureFixture[str], random_gguf: Path) -> None:
    assert main(["bench", str(random_gguf), "--device", "cpu", "--gpu-layers", "3"]) == 2
    assert "--gpu-layers" in capsys.readouterr().err


def test_random_models_run(random_gguf: Path) -> None:
    found = measure(read_gguf(random_gguf), [64], [CacheSpec.parse(s) for s in SPECS], 1, 1)
    assert [row["n_kv"] for row in found["rows"]] == [64, 64]
    assert found["rows"][1]["kv_bytes"] < found["rows"][0]["kv_bytes"] / 2


def test_random_weights_keep_sizes() -> None:
    rows = random_model.random_q4_0(np.random.default_rng(1), 64, 256)
    blocks = rows.reshape(-1, 18)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float64)
    levels = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1).astype(np.float64) - 8
    weights = (scale * levels).reshape(64, 256)
    assert 0.8 < np.linalg.norm(weights, axis=1).mean() < 1.2


def test_devices_are_compared(random_gguf: Path) -> None:
    specs = [CacheSpec.parse(text) for text in SPECS]
    for row in compare_devices.compare(random_gguf, specs, gpu_layers=0):
        assert (row["prompt"], row["decode"], row["same"], row["fallback"]) == (0.0, 0.0, True, "")
        assert (row["cost_decode"] > 0) == (row["cache"] != "f16")


@pytest.mark.parametrize(
    ("changes", "plain", "expected"),
    [
        ({}, 0.0, True),
        ({"decode": 9e-4}, 0.0, True),
        ({"decode": 2e-3}, 0.0, False),
        ({"decode": 2e-3}, 7e-4, True),
        ({"decode": 2e-3, "cost_decode": 1e-2}, 0.0, True),
        ({"decode": 2e-3, "cost_prompt": 1e-2}, 0.0, False),
        ({"prompt": float("nan")}, 0.0, False),
        ({"same": False}, 0.0, False),
    ],
)
def test_what_counts_as_the_same_logits(changes: dict[str, float], plain: float, expected: bool) -> None:
    row = {"prompt": 0.0, "decode": 0.0, "cost_prompt": 0.0, "cost_decode": 0.0, "same": True, **changes}
    assert compare_devices.agrees(row, plain) is expected


def test_nmse() -> None:
    assert compare_devices.nmse(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(0.2)


@pytest.mark.skipif(not devices.gpus(), reason="needs a GPU")
def test_gpu_gives_the_same_logits() -> None:
    assert compare_devices.main([]) == 0


def test_kernels_are_measured_beside_upstreams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
        assert row["gb_s"] == pytest.approx(row["bytes"] / row["us"] * 1e-3, rel=0.02)
    # K and V of two sequences, eight heads of 128: the least that is read
    assert all(row["bytes"] > 2 * 2 * row["n_kv"] * 8 * 128 / 4 for row in found["rows"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 16 + 2
    assert bench_kernels.main(["--device", "nowhere", "--bin", str(program.parent)]) == 1
    for wrong in ("x", "0", "1,"):
        with pytest.raises(SystemExit):
            bench_kernels.main(["--kv", wrong])


def test_requests_are_like_conversations() -> None:
    requests = bench_throughput.draw_requests(4000)
    prompts, answers = (np.array([getattr(r, name) for r in requests]) for name in ("prompt", "answer"))
    assert prompts.min() >= bench_throughput.SHORTEST and answers.max() == bench_throughput.LONGEST
    assert (
        110 < prompts.mean() < 161 and 180 < answers.mean() < 338
    )  # less than drawn, as the longest are cut
    assert requests == bench_throughput.draw_requests(4000)


def test_throughput_counts_answers(random_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_throughput, "LONGEST", 16)
    with NativeModel(random_gguf) as model:
        spec = CacheSpec.parse(SPECS[1])
        row = bench_throughput.measure(bench_throughput.Service(model, random_gguf, spec, 1 << 20, 64, 1), 5)
    assert row["tokens"] == sum(request.answer for request in bench_throughput.draw_requests(5))
    assert row["sequences"] > 1 and row["kv_bytes"] <= 1 << 20


def test_cuda_sources_are_skipped_aloud(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cuda, "find_nvcc", lambda: None)
    assert compile_cuda.main([]) == 0
    assert "skipped, there is no nvcc" in capsys.readouterr().out

"""scripts/random_model.py: models with random weights run, and the weights preserve the size of activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import random_model
from minicache_cpp import CacheSpec
from minicache_cpp.bench.speed import measure
from minicache_cpp.modelfile.gguf_file import read_gguf

SPECS = ("f16", "slerp:type=q4_0")


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


def test_a_small_vocabulary_is_written(small_gguf: Path) -> None:
    file = read_gguf(small_gguf)
    assert file.tensors["output.weight"].dims[:2] == (256, 96)
    with pytest.raises(SystemExit):
        random_model.main(["tiny", "--vocab", "1000", "-o", "none.gguf"])

"""What calibration records of a model is what the model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp.calibrate.attention_weights import attention_weights
from minicache_cpp.calibrate.capture import capture
from minicache_cpp.calibrate.layer_weights import output_gain, output_gains
from minicache_cpp.calibrate.material import Chunk
from minicache_cpp.calibrate.samples import Samples
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from minicache_cpp.reading.model import NativeModel
from support import tiny_models


@pytest.mark.parametrize("name", ["plain", "odd", "alibi"])
def test_captured_values_are_those_of_the_model(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    chunks = [Chunk(tiny_models.prompt(40), 0), Chunk(tiny_models.prompt(30, seed=1), 3000)]
    shape = model_shape(read_gguf(models[name]))
    samples = Samples(tmp_path, shape, chunks, window=8)
    with NativeModel(models[name]) as model:
        capture(model, samples, 1, lambda n: None)
    arch = {"plain": "llama", "odd": "qwen2", "alibi": "refact"}[name]
    tiny = tiny_models.random_model(n_layer=len(shape.layers), arch=arch)
    tokens = [token for chunk in chunks for token in chunk.tokens]
    x = tiny.weights["token_embd.weight"][tokens].astype(np.float64)
    normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + tiny.shape.eps)
    normed *= tiny.weights["blk.0.attn_norm.weight"]

    def project(kind: str, n_head: int) -> Any:
        rows = normed @ tiny.weights[f"blk.0.attn_{kind}.weight"].T
        if f"blk.0.attn_{kind}.bias" in tiny.weights:
            rows = rows + tiny.weights[f"blk.0.attn_{kind}.bias"]
        return rows.reshape(len(tokens), n_head, -1).astype(np.float32)

    rope = samples.ropes[0]
    assert rope is not None
    assert rope.kind == tiny.shape.rope
    k, v = samples.layer(0)
    np.testing.assert_allclose(v, project("v", 2), atol=5e-3)
    np.testing.assert_allclose(k, rope.turn(project("k", 2), samples.positions), atol=5e-3)
    if rope.kind != "none":
        freq = 10000.0 ** (-np.arange(16) / 16)
        np.testing.assert_allclose(rope.freq, freq, rtol=1e-6)
    # the weights of errors, chunk by chunk
    q = rope.turn(project("q", 4), samples.positions)
    turned_k, exact_v = rope.turn(project("k", 2), samples.positions), project("v", 2)
    parts = [slice(0, 40), slice(40, 70)]
    reads = [attention_weights(q[one], turned_k[one], exact_v[one], np.ones(4), 8) for one in parts]
    read = samples.read(0)
    np.testing.assert_allclose(
        read.k, (4 * reads[0].k + 3 * reads[1].k) / 7, rtol=1e-2, atol=1e-3 * read.k.max()
    )
    np.testing.assert_allclose(read.v, (4 * reads[0].v + 3 * reads[1].v) / 7, rtol=1e-2)
    tokens_k, tokens_v = (
        np.concatenate(ones) for ones in zip(*[(x.tokens_k, x.tokens_v) for x in reads], strict=True)
    )
    np.testing.assert_allclose(samples.tokens("k", 0), tokens_k, rtol=2e-2)
    np.testing.assert_allclose(samples.tokens("v", 0), tokens_v, rtol=2e-2)
    # without the first chunk
    later = samples.without([0])
    np.testing.assert_array_equal(later.positions, 3000 + np.arange(30))
    for less, all_of_it in zip(later.layer(1), samples.layer(1), strict=True):
        np.testing.assert_array_equal(less, all_of_it[40:])
    np.testing.assert_array_equal(later.tokens("k", 0), samples.tokens("k", 0)[40:])
    np.testing.assert_allclose(later.read(0).v, reads[1].v, rtol=1e-2)
    assert len(samples.without([]).positions) == 70


def test_the_gain_of_values_is_that_of_the_output_matrix(models: dict[str, Path]) -> None:
    file = read_gguf(models["plain"])
    matrix = tiny_models.random_model(n_layer=4).weights["blk.1.attn_output.weight"].astype(np.float64)
    expected = (matrix.reshape(128, 4, 32) ** 2).sum(axis=0).mean(axis=1)
    gain = output_gain(file, model_shape(file), 1)
    assert gain is not None
    np.testing.assert_allclose(gain, expected, rtol=1e-5)
    assert len(output_gains(file, model_shape(file))) == 4

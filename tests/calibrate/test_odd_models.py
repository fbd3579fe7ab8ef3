"""Models whose K and V are not like those of others: what real models have, in tiny ones that are made to have it.

A code is of unit vectors, weighted by how much attention reads each number, in principal components about zero. So a
bias of K is one component of large variance, which gets many bits once; channels that stand out are components too; a
head that nobody reads has next to no weight, and gets few bits; and a token of huge norm is a unit vector like any
other, with its norm in a byte of logarithmic scale. The window is f16 where q8_0 would lose too much of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.calibrate.observed import observing
from minicache_cpp.native.batch import BatchToken
from minicache_cpp.reading.model import NativeModel
from support import tiny_models
from support.calibrations import made


def biases(tiny: tiny_models.TinyModel) -> None:
    """Qwen2's: K has a bias that is many times as long as what varies in it."""
    for layer in range(tiny.shape.n_layer):
        bias = tiny.weights[f"blk.{layer}.attn_k.bias"]
        bias[:] = 0
        bias[3::32] = 25
        bias[10::32] = -12


def outliers(tiny: tiny_models.TinyModel) -> None:
    """A channel of K and one of V are ten times as large as the others."""
    for layer in range(tiny.shape.n_layer):
        tiny.weights[f"blk.{layer}.attn_k.weight"][5::32] *= 10
        tiny.weights[f"blk.{layer}.attn_q.weight"][5::32] /= 10
        tiny.weights[f"blk.{layer}.attn_v.weight"][7::32] *= 10
        tiny.weights[f"blk.{layer}.attn_output.weight"][:, 7::32] /= 10


def sink(tiny: tiny_models.TinyModel) -> None:
    """The first token's K is far longer and its V far shorter than any other's, and all heads like to read it."""
    embedding = tiny.weights["token_embd.weight"]
    embedding[tiny_models.BOS] = 0
    embedding[:, 0] = 0
    embedding[:, 1] = 1
    embedding[tiny_models.BOS, :2] = 40, 3
    for layer in range(tiny.shape.n_layer):
        for kind, column, to_sink in (("q", 1, 1.0), ("k", 0, 3.0)):
            weight = tiny.weights[f"blk.{layer}.attn_{kind}.weight"]
            weight[:, column] = 0
            weight[30::32, column] = weight[31::32, column] = to_sink
        tiny.weights[f"blk.{layer}.attn_v.weight"][:, 0] = 0


def unread(tiny: tiny_models.TinyModel) -> None:
    """What the second KV head's queries find does not reach the output."""
    for layer in range(tiny.shape.n_layer):
        tiny.weights[f"blk.{layer}.attn_output.weight"][:, 64:] = 0


def norms(tiny: tiny_models.TinyModel) -> None:
    """Qwen3's: Q and K are normalized head by head."""
    rng = np.random.default_rng(4)
    for layer in range(tiny.shape.n_layer):
        for kind in "qk":
            tiny.weights[f"blk.{layer}.attn_{kind}_norm.weight"] = rng.uniform(0.3, 2.5, 32).astype(
                np.float32
            )


CASES = {
    "biases": ("qwen2", biases),
    "outliers": ("llama", outliers),
    "sink": ("llama", sink),
    "unread": ("llama", unread),
    "norms": ("qwen3", norms),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_loses_less_than_q4_0_in_fewer_bytes(text: Path, tmp_path: Path, name: str) -> None:
    arch, change = CASES[name]
    tiny = tiny_models.random_model(n_layer=4, arch=arch)
    change(tiny)
    model = tiny.write(tmp_path / "model.gguf")
    found: dict[str, Any] = made(model, text, tmp_path / "plan.gguf", ratio=4.0)
    rows = {row["name"]: row for row in found["rows"]}
    plan = PlanFile.open(found["plan"]).plan
    assert plan.groups
    # a block of the window's rows that has a bias in it leaves few levels to the numbers beside it, and where all bits
    # are for one of two heads, its code loses no more than rows of q8_0 would
    assert plan.pool_type == ("f16" if name in ("biases", "unread") else "q8_0")
    assert rows["plan"]["ratio"] > rows["q4_0"]["ratio"]
    assert rows["plan"]["kl"] < rows["q4_0"]["kl"]


def test_a_head_that_nobody_reads_gets_few_bits(text: Path, tmp_path: Path) -> None:
    tiny = tiny_models.random_model(n_layer=4)
    unread(tiny)
    found = made(tiny.write(tmp_path / "model.gguf"), text, tmp_path / "plan.gguf", ratio=4.0)
    for group in PlanFile.open(found["plan"]).plan.groups:
        for read, other in (group.layouts_k, group.layouts_v):
            assert read.bits > 8 * 32
            assert other.bits < read.bits / 4


def test_the_sink_is_one(tmp_path: Path) -> None:
    """The model of the case above does what its name says."""
    tiny = tiny_models.random_model(n_layer=4)
    sink(tiny)
    tokens = [tiny_models.BOS, *tiny_models.prompt(60)]
    with NativeModel(tiny.write(tmp_path / "model.gguf")) as model, observing(model, 64, 1) as observed:
        observed.read((BatchToken(token, i) for i, token in enumerate(tokens)), "qkv")
        q, k, v = (observed.seen[kind, 0].reshape(61, -1, 32) for kind in "qkv")
    lengths_k, lengths_v = (np.linalg.norm(one, axis=2) for one in (k, v))
    assert (lengths_k[0] > 2 * lengths_k[1:].max(axis=0)).all()
    assert (lengths_v[0] < lengths_v[1:].min(axis=0)).all()
    for head in range(4):
        scores = q[1:, head] @ k[:, head // 2].T / np.sqrt(32)
        assert (scores[30:].argmax(axis=1) == 0).mean() > 0.6

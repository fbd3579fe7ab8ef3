"""The Hadamard rotation of quantized rows has the sizes that the native library reports, in both caches."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from minicache_cpp.calibrate.plain_fit import hadamard, rotation
from minicache_cpp.modelfile.ggml_types import GGML_TYPES
from oracle.model import Config
from support import tiny_models
from support.contexts import Context, nmse, run
from support.loaded import Loaded
from support.plans import plain
from support.tiny_models import prompt

Floats = NDArray[np.float32]


def first_rows(loaded: Loaded, config: Config) -> list[Floats]:
    """The first layer's K and V of a token at position 0, [n_head_kv, head_size], as the cache stores them."""
    shape = loaded.tiny.shape
    with Context.of(loaded.model, config) as context:
        context.decode(run(prompt(1)))
        state = context.seq_state(0)
    rows = []
    for kind in (config.type_k, config.type_v):
        number = gguf.GGMLQuantizationType(GGML_TYPES[kind].number)
        block, n_bytes = gguf.GGML_QUANT_SIZES[number]
        size = shape.n_head_kv * shape.head_size // block * n_bytes
        # a layer's rows follow their type and size, and K's layers come before V's
        at = state.index(struct.pack("<iQ", number, size)) + 12
        stored_row = np.frombuffer(state[at : at + size], np.uint8)
        rows.append(gguf.dequantize(stored_row, number).reshape(shape.n_head_kv, shape.head_size))
    return rows


@pytest.mark.parametrize("own", [False, True], ids=["llama.cpp", "ours"])
@pytest.mark.parametrize("head_size", [32, 64, 96, 128, 192, 256])
def test_the_rotation_has_the_sizes_of_the_caches(
    load: Callable[..., Loaded], tmp_path: Path, head_size: int, own: bool
) -> None:
    """A cache stores K and V after rotations of these sizes, and of no others."""
    loaded = load(tiny_models.random_model, head_size=head_size)
    exact, rounded = (
        first_rows(loaded, plain(loaded, config, tmp_path / "plan.gguf") if own else config)
        for config in (Config(type_k="f16", type_v="bf16"), Config(type_k="q8_0", type_v="q5_1"))
    )
    for x, y, n in zip(exact, rounded, rotation(head_size, head_size), strict=True):
        assert nmse(y, hadamard(x, n)) < 2e-3
        for other in (0, 64, 128, 256):
            if other != n and (other == 0 or head_size % other == 0):
                assert nmse(y, hadamard(x, other)) > 0.1

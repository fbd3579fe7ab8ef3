"""What each cache type loses of a layer's K and V, so that the planner can choose types for layers that are not coded.

The errors are those of unit vectors, weighted (layer_weights.py), that go through what llama.cpp does with a row:
quantized rows are multiplied by a Hadamard matrix, in the blocks that the native library names, before they are
rounded, and again after they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import Kind
from ..modelfile.ggml_types import CACHE_TYPES, GGML_TYPES, is_quantized
from ..native import binding
from .code_fit import unit_vectors
from .plans import POOL_TYPE
from .samples import Samples

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# tokens that are rounded, spread evenly over all that were captured
ROWS = 256
# ggml's kvalues_iq4nl
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


@dataclass(frozen=True)
class PlainFit:
    """The weighted mean squared errors of a layer's K and V in each cache type that its heads can have.

    `window_k` and `window_v` are those of rows of the pool's type that are not rotated, as the window of coded layers
    keeps them; 0 where heads cannot have that type.
    """

    layer: int
    k: Mapping[str, float]
    v: Mapping[str, float]
    window_k: float
    window_v: float


def fit_plain(samples: Samples, weights: Mapping[Kind, Doubles], number: int) -> PlainFit:
    """The errors of a layer; `weights`, [n_head_kv, d] for K and for V, are those of its squared errors."""
    k, v = samples.layer(number)
    step = max(1, len(k) // ROWS)
    size_k, size_v = k.shape[2], v.shape[2]
    rotated_k, rotated_v = rotation(size_k, size_v)
    unit_k, unit_v = unit_vectors(k[::step]), unit_vectors(v[::step])
    return PlainFit(
        number,
        _errors(unit_k, weights["k"], rotated_k),
        _errors(unit_v, weights["v"], rotated_v),
        _errors(unit_k, weights["k"], 0, [POOL_TYPE]).get(POOL_TYPE, 0.0),
        _errors(unit_v, weights["v"], 0, [POOL_TYPE]).get(POOL_TYPE, 0.0),
    )


def rotation(size_k: int, size_v: int) -> tuple[int, int]:
    """Returns the block sizes in which llama.cpp rotates quantized K and V of these head sizes, 0 where it does not."""
    n_k, n_v = binding.ffi.new("int32_t *"), binding.ffi.new("int32_t *")
    binding.lib.llama_minicache_rotation(size_k, size_v, n_k, n_v)
    return int(n_k[0]), int(n_v[0])


def _errors(
    unit: Floats, weight: Doubles, n_rotated: int, types: Collection[str] = CACHE_TYPES
) -> dict[str, float]:
    """The errors of unit vectors [n, heads, d] by type; quantized types rotate blocks of `n_rotated` numbers."""
    found = {}
    for name in types:
        ggml_type = GGML_TYPES[name]
        if unit.shape[2] % ggml_type.block:
            continue
        n = n_rotated if is_quantized(ggml_type) else 0
        rounded = hadamard(round_trip(hadamard(unit, n), name), n)
        squares = ((rounded - unit).astype(np.float64) ** 2).mean(axis=0)
        found[name] = float((weight * squares).sum())
    return found


def hadamard(x: Floats, n: int) -> Floats:
    """Multiplies each block of n numbers by the orthogonal Hadamard matrix, its own inverse; returns x where n is 0."""
    if not n:
        return x
    y: Any = x
    half = 1
    while half < n:
        y = y.reshape(-1, n // (2 * half), 2, half)
        y = np.stack([y[:, :, 0] + y[:, :, 1], y[:, :, 0] - y[:, :, 1]], axis=2)
        half *= 2
    return np.asarray(y.reshape(x.shape) / np.sqrt(n), dtype=np.float32)


def round_trip(x: Floats, name: str) -> Floats:
    """x as a cache of type `name` restores it; the last axis holds whole rows."""
    if not x.size:
        return x.astype(np.float32)
    if name == "f16":
        return x.astype(np.float16).astype(np.float32)
    rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]), dtype=np.float32)
    special: dict[str, Callable[[Floats], Floats]] = {"iq4_nl": _iq4_nl}
    if name in special:
        return special[name](rows).reshape(x.shape)
    import gguf

    # as one row, because gguf goes through rows one by one, and a row is whole blocks
    number, row = gguf.GGMLQuantizationType(GGML_TYPES[name].number), rows.reshape(1, -1)
    return np.asarray(gguf.dequantize(gguf.quantize(row, number), number), dtype=np.float32).reshape(x.shape)


def _iq4_nl(rows: Floats) -> Floats:
    """ggml's quantize_row_iq4_nl_ref(), which gguf lacks: the nearest of 16 levels, then the best scale for those."""
    block = rows.reshape(-1, 32)
    largest = np.take_along_axis(block, np.abs(block).argmax(axis=1)[:, None], axis=1)
    inverse = np.divide(IQ4_NL[0], largest, out=np.zeros_like(largest), where=largest != 0)
    middles = (IQ4_NL[1:] + IQ4_NL[:-1]) / 2
    level = IQ4_NL[np.searchsorted(middles, block * inverse)]
    weight = block**2
    above, below = ((weight * level * other).sum(axis=1, keepdims=True) for other in (block, level))
    scale = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.asarray(level * scale.astype(np.float16).astype(np.float32)).reshape(rows.shape)

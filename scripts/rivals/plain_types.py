"""llama.cpp's own cache types.

    row = H·x    stored in blocks of 32 numbers with one f16 scale    x̂ = H·row

q8_0 has 8 bits for a number and q4_0 4, so 8.5 and 4.5 with the scale. H is an orthogonal Hadamard matrix, by which
llama.cpp multiplies the K and V of quantized types if heads are multiples of 64, so that outliers are spread. f16
rounds each number and loses next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from minicache_cpp.cache.code_format import Kind
from minicache_cpp.calibrate.plain_fit import hadamard, rotation, round_trip
from minicache_cpp.modelfile.ggml_types import GGML_TYPES, is_quantized
from minicache_cpp.modelfile.shape import Layer, ModelShape

from .method import Floats, LayerMethod


@dataclass(frozen=True)
class PlainType(LayerMethod):
    """All layers in one cache type."""

    shape: ModelShape
    type: str

    def restore(self, kind: Kind, x: Floats, layers: tuple[int, ...], first: int) -> Floats:
        return restore_plain(kind, x, self.shape.layers[layers[0]], self.type)

    def head_bits(self, kind: Kind, d: int) -> float:
        return 8 * GGML_TYPES[self.type].row_bytes(d)


def restore_plain(kind: Kind, x: Floats, layer: Layer, type_name: str) -> Floats:
    """What a plain layer of this type restores of x [..., d]."""
    sizes = rotation(layer.head_size_k, layer.head_size_v)
    n_rotated = sizes[kind == "v"] if is_quantized(GGML_TYPES[type_name]) else 0
    return hadamard(round_trip(hadamard(x, n_rotated), type_name), n_rotated)

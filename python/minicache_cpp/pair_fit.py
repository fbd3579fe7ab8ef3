"""The codes of a pair, fitted to what was captured of its two layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .capture import Rope, Samples
from .code_fit import PartCodec, PartFit, codec_array, fit_part, make_codec
from .code_format import Layout, PairFormat
from .gguf_file import GGUFFile
from .kv_size import ModelShape

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

OUTPUT_ROWS = 1024  # of an output matrix, spread over it, that are looked at
LEAST_WEIGHT = 1e-3  # of the mean: where queries are next to nothing now, they may be something another time


@dataclass
class PairFit:
    """Layers a and b: the fits of K and V, and the codecs that were made of them."""

    a: int
    b: int
    k: PartFit
    v: PartFit
    source: PairSource
    codecs: dict[tuple[str, Layout], PartCodec] = field(default_factory=dict, repr=False)

    def format(self, layout_k: Layout, layout_v: Layout) -> PairFormat:
        n_head, size_k = self.k.weight.shape
        return PairFormat(
            self.a, self.b, n_head, size_k // 2, self.v.weight.shape[1] // 2, layout_k, layout_v
        )

    def codec(self, layout_k: Layout, layout_v: Layout) -> NDArray[np.int8]:
        """The codec's bytes for these layouts."""
        return codec_array(self._part("k", layout_k), self._part("v", layout_v))

    def _part(self, kind: str, layout: Layout) -> PartCodec:
        if (kind, layout) not in self.codecs:
            fit = self.k if kind == "k" else self.v
            self.codecs[kind, layout] = make_codec(fit, layout, *self.source.read(kind))
        return self.codecs[kind, layout]


@dataclass(frozen=True)
class PairSource:
    """Where the samples of a pair come from: K as it is coded, or V, of both layers."""

    samples: Samples
    a: int
    b: int
    rope: Rope
    rope_block: int

    def read(self, kind: str) -> tuple[Floats, Floats]:
        layers = [self.samples.layer(number) for number in (self.a, self.b)]
        if kind == "v":
            return layers[0][1], layers[1][1]
        if self.rope_block:
            bases = self.samples.positions // self.rope_block * self.rope_block
            return self.rope.turn(layers[0][0], -bases), self.rope.turn(layers[1][0], -bases)
        return layers[0][0], layers[1][0]


def fit_pair(file: GGUFFile, samples: Samples, a: int, b: int, rope_block: int) -> PairFit:
    """Fit the codes of layers a and b."""
    rope = samples.ropes[a] or Rope("none")
    source = PairSource(samples, a, b, rope, rope_block if rope.kind != "none" else 0)
    keys, values = source.read("k"), source.read("v")
    weight_k, weight_v = [], []
    for layer, k, v in zip((a, b), keys, values, strict=True):
        weight = rope.paired_mean(samples.query_squares(layer)) * _mean_square(k)
        weight_k.append(np.maximum(weight, LEAST_WEIGHT * weight.mean()))
        weight = output_weights(file, samples.shape, layer)[:, None] * _mean_square(v)
        weight_v.append(np.repeat(np.maximum(weight, 1e-12), v.shape[2], axis=1))
    return PairFit(
        a,
        b,
        fit_part(*keys, np.concatenate(weight_k, axis=1)),
        fit_part(*values, np.concatenate(weight_v, axis=1)),
        source,
    )


def output_weights(file: GGUFFile, shape: ModelShape, number: int) -> Doubles:
    """How much of each KV head's values gets into the layer's output: the mean square gain, up to a factor."""
    layer = shape.layers[number]
    tensor = file.tensors.get(f"blk.{number}.attn_output.weight")
    if tensor is None or len(tensor.dims) != 2 or tensor.dims[0] % (layer.n_head_kv * layer.head_size_v):
        return np.ones(layer.n_head_kv)
    import gguf

    width, n_row = tensor.dims
    step = max(1, n_row // OUTPUT_ROWS)
    row_bytes = tensor.n_bytes // n_row
    with tensor.path.open("rb") as data:
        rows = np.empty((len(range(0, n_row, step)), row_bytes), np.uint8)
        for index, row in enumerate(range(0, n_row, step)):
            data.seek(tensor.offset + row * row_bytes)
            rows[index] = np.frombuffer(data.read(row_bytes), np.uint8)
    try:
        matrix = gguf.dequantize(rows, gguf.GGMLQuantizationType(tensor.type_number))
    except (NotImplementedError, ValueError):  # a type that gguf can't read
        return np.ones(layer.n_head_kv)
    squares = (np.asarray(matrix, dtype=np.float64) ** 2).sum(axis=0) * step
    by_head = squares.reshape(layer.n_head_kv, width // layer.n_head_kv).sum(axis=1)
    return np.asarray(by_head / layer.head_size_v)


def alike_pairs(shape: ModelShape) -> list[tuple[int, int]]:
    """Neighbouring layers of the same shape, from the first on."""
    pairs = []
    number = 0
    while number + 1 < len(shape.layers) and not shape.window:
        a, b = shape.layers[number : number + 2]
        if a.n_head_kv and a == b:
            pairs.append((number, number + 1))
            number += 1
        number += 1
    return pairs


def _mean_square(x: Floats) -> Doubles:
    """Of the vectors' lengths, by head, [n_head_kv, 1]."""
    return np.asarray((x.astype(np.float64) ** 2).sum(axis=2).mean(axis=0)[:, None])

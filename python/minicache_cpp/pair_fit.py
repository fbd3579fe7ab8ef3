"""The codes of a pair, fitted to what was captured of its two layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .capture import Rope, Samples
from .code_fit import PartCodec, PartFit, codec_array, fit_part, make_codec
from .code_format import GroupFormat, Layout
from .gguf_file import GGUFFile
from .kv_size import ModelShape
from .layer_weights import layer_weights

Floats = NDArray[np.float32]


@dataclass
class PairFit:
    """Layers a and b: the fits of K and V, and the codecs that were made of them."""

    a: int
    b: int
    k: PartFit
    v: PartFit
    source: PairSource
    codecs: dict[tuple[str, Layout], PartCodec] = field(default_factory=dict, repr=False)

    def format(self, layout_k: Layout, layout_v: Layout) -> GroupFormat:
        n_head, size_k = self.k.weight.shape
        return GroupFormat(
            (self.a, self.b), n_head, size_k // 2, self.v.weight.shape[1] // 2, layout_k, layout_v
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
    weights = [
        layer_weights(file, samples, layer, k, v) for layer, k, v in zip((a, b), keys, values, strict=True)
    ]
    weight_k, weight_v = (np.concatenate(parts, axis=1) for parts in zip(*weights, strict=True))
    return PairFit(
        a,
        b,
        fit_part(*keys, weight_k),
        fit_part(*values, weight_v),
        source,
    )


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

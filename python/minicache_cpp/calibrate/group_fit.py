"""Groups of layers, and the codes that are fitted to their samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import KINDS, GroupFormat, Kind, Layouts
from ..host.threads import side_by_side
from .code_fit import CHOICES, PartCodec, PartFit, codec_array, fit_part, make_codec
from .samples import Samples

# more fits side by side would take more memory than they save time, as most of a calibration is the model's reading
FITS_AT_ONCE = 2
# the largest weight of a token, relative to the mean: what one text attends to most, another may not
MOST_OF_TOKEN = 3.0

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Item = TypeVar("Item")
Fit = TypeVar("Fit")
# the weights of squared errors of unit vectors, by layer and by kind, [n_head_kv, d]
LayerWeights = Mapping[int, Mapping[Kind, Doubles]]


@dataclass(frozen=True)
class Source:
    """The samples of a model's layers in the form that is coded: K relative to its base positions, and V."""

    samples: Samples
    # the base positions are its multiples; 0: K is coded as it is after RoPE
    rope_block: int

    def read(self, kind: Kind, layer: int) -> Floats:
        """The K or V of a layer, [tokens, n_head_kv, d]."""
        k, v = self.samples.layer(layer)
        return v if kind == "v" else self.coded(layer, k, self.samples.positions)

    def coded(self, layer: int, k: Floats, positions: NDArray[np.int64]) -> Floats:
        """The K of a layer at these positions, [tokens, n_head_kv, d], in the form that is coded."""
        return self._turned(layer, k, positions, -1)

    def cached(self, layer: int, k: Floats, positions: NDArray[np.int64]) -> Floats:
        """The K of a layer as attention reads it, from the form that is coded."""
        return self._turned(layer, k, positions, 1)

    def _turned(self, layer: int, k: Floats, positions: NDArray[np.int64], direction: int) -> Floats:
        """K turned by its base positions, forwards (1) or back (-1)."""
        rope, block = self.samples.ropes[layer], self.block(layer)
        if rope is None or not block:
            return k
        return rope.turn(k, direction * (positions // block * block))

    def block(self, layer: int) -> int:
        """The distance between a layer's base positions; 0 where RoPE does not turn its K, which then has none."""
        rope = self.samples.ropes[layer]
        return self.rope_block if rope is not None and rope.kind != "none" else 0


@dataclass
class GroupFit:
    """The fits of the K and V of layers that share a code, and the codecs that were made of them so far."""

    layers: tuple[int, ...]
    k: PartFit
    v: PartFit
    source: Source
    codecs: dict[tuple[Kind, Layouts], PartCodec] = field(default_factory=dict, repr=False)

    @property
    def first(self) -> int:
        return self.layers[0]

    def part(self, kind: Kind) -> PartFit:
        return self.k if kind == "k" else self.v

    def format(self, layouts_k: Layouts, layouts_v: Layouts) -> GroupFormat:
        (n_head, size_k), size_v = self.k.weight.shape, self.v.weight.shape[1]
        n = len(self.layers)
        return GroupFormat(self.layers, n_head, size_k // n, size_v // n, layouts_k, layouts_v)

    def codec(self, layouts_k: Layouts, layouts_v: Layouts) -> NDArray[np.int8]:
        """The bytes of the codec for these layouts."""
        return codec_array(self._part("k", layouts_k), self._part("v", layouts_v))

    def _part(self, kind: Kind, layouts: Layouts) -> PartCodec:
        if (kind, layouts) not in self.codecs:
            self.codecs[kind, layouts] = make_codec(
                self.part(kind), layouts, [self.source.read(kind, layer) for layer in self.layers]
            )
        return self.codecs[kind, layouts]


def fits_side_by_side(fit: Callable[[Item], Fit], items: Iterable[Item], threads: int) -> Iterator[Fit]:
    """Yields fit(item) of each item, in order; NumPy lets other threads work meanwhile."""
    return side_by_side(fit, items, min(threads, FITS_AT_ONCE))


def fit_group(
    source: Source, weights: LayerWeights, layers: Sequence[int], widths: Collection[int] = CHOICES
) -> GroupFit:
    """Fits the code that `layers` share, for these widths; their weights say how much the errors of each count."""
    k, v = (_fit(source, weights, layers, kind, widths) for kind in KINDS)
    return GroupFit(tuple(layers), k, v, source)


def _fit(
    source: Source, weights: LayerWeights, layers: Sequence[int], kind: Kind, widths: Collection[int]
) -> PartFit:
    weight = np.concatenate([weights[layer][kind] for layer in layers], axis=1)
    # a token's weight in a code is the mean over its layers, each by how much its errors count
    shares = [weights[layer][kind].sum(axis=1) * source.samples.tokens(kind, layer) for layer in layers]
    tokens = np.minimum(sum(shares) / sum(shares).mean(axis=0), MOST_OF_TOKEN)
    return fit_part(
        [source.read(kind, layer) for layer in layers], weight, tokens / tokens.mean(axis=0), widths
    )

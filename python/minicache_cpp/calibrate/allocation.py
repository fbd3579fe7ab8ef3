"""Allocates bits: chooses the widths, and the plain types of uncoded layers, that lose least within a given size.

The loss of a plan is taken to be the sum of the losses of its parts, each of which is a squared error times the
measured sensitivity of its layer (sensitivity.py). Given a price for a byte, every part, and in it every KV head, is
chosen by itself, to cost least; the price is searched for at which all of them together fit. This is reverse
water-filling (Cover and Thomas, Elements of Information Theory, ch. 10) with a Lagrange multiplier in place of the
water level (Shoham and Gersho 1988).

Attention takes time for each unit of coefficients that a layer reads, so a unit may have a price as well. Layers can be
cut into groups in several ways then: what shares a code more widely loses less, and is read by more layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import UNIT, WIDTHS, Layout, Layouts, token_row_bytes
from .code_fit import CHOICES, of_layouts

# the prices between which the search is done
LOWEST, HIGHEST = 1e-24, 1e12

# the width of each choice, and the bytes that a unit of it takes
_WIDTH = np.array(CHOICES)
_UNIT_BYTES = UNIT / 8 * _WIDTH


@dataclass(frozen=True)
class Price:
    """What is paid for a cached token, as a loss."""

    # for a byte
    byte: float
    # for every unit that attention reads, in each of the layers that read it
    unit: float = 0.0


@dataclass(frozen=True)
class Part:
    """The K, or the V, of a group that is coded."""

    # [n_head_kv, choice, unit]
    losses: NDArray[np.float64]
    n_layer: int

    def layouts(self, price: Price) -> Layouts:
        """The widths of each KV head that cost least at this price."""
        paid = price.byte * _UNIT_BYTES + price.unit * self.n_layer * (_WIDTH > 0)
        best = _WIDTH[(self.losses + paid[:, None]).argmin(axis=1)]
        # a row has its wide units first, and variances fall: where a later unit would be wider, that is noise
        falling = np.minimum.accumulate(best, axis=1)
        units = (falling[:, :, None] == WIDTHS).sum(axis=1)
        return tuple(Layout(tuple(one)) for one in units.tolist())

    def loss(self, layouts: Layouts) -> float:
        return float(of_layouts(self.losses, layouts, unit=1).sum())

    def token_bytes(self, layouts: Layouts) -> float:
        """Bytes per token, magnitudes included."""
        return token_row_bytes(layouts, self.n_layer)

    def units(self, layouts: Layouts) -> float:
        """The units that attention reads, in all layers together."""
        return self.n_layer * sum(sum(one.units) for one in layouts)


@dataclass(frozen=True)
class PlainPart:
    """The K, or the V, of a layer that is not coded."""

    # both by cache type; the bytes are those of a token
    losses: Mapping[str, float]
    n_bytes: Mapping[str, float]
    # the numbers of a token, 16 of which take attention about as long as a unit does
    n: int

    def choose(self, price: Price) -> str:
        return min(self.losses, key=lambda name: self.losses[name] + price.byte * self.n_bytes[name])

    @property
    def units(self) -> float:
        return self.n / UNIT


@dataclass(frozen=True)
class Choice:
    """How a group is kept: the layouts of its K and V, or the cache types of K and V of each of its layers."""

    k: Layouts | None = None
    v: Layouts | None = None
    types: tuple[tuple[str, str], ...] = ()

    @property
    def coded(self) -> bool:
        return not self.types


@dataclass(frozen=True)
class Candidate:
    """A group of layers, and the ways to keep it."""

    layers: tuple[int, ...]
    # K and V of each layer; without any, the group must be coded
    plain: tuple[tuple[PlainPart, PlainPart], ...] = ()
    # K and V; None where the group must stay plain
    code: tuple[Part, Part] | None = None

    def choose(self, price: Price) -> Choice:
        """The way that costs least at this price."""
        ways = []
        if self.plain:
            ways.append(Choice(types=tuple((k.choose(price), v.choose(price)) for k, v in self.plain)))
        if self.code:
            ways.append(Choice(self.code[0].layouts(price), self.code[1].layouts(price)))
        return min(reversed(ways), key=lambda way: self.cost(way, price))

    def cost(self, choice: Choice, price: Price) -> float:
        return self.loss(choice) + price.byte * self.token_bytes(choice) + price.unit * self.units(choice)

    def loss(self, choice: Choice) -> float:
        if choice.types:
            return sum(part.losses[name] for part, name in self._typed(choice))
        return sum(part.loss(layouts) for part, layouts in self._coded(choice))

    def token_bytes(self, choice: Choice) -> float:
        if choice.types:
            return sum(part.n_bytes[name] for part, name in self._typed(choice))
        return sum(part.token_bytes(layouts) for part, layouts in self._coded(choice))

    def units(self, choice: Choice) -> float:
        """The units that attention reads of a token, in all layers together."""
        if choice.types:
            return sum(part.units for part, _ in self._typed(choice))
        return sum(part.units(layouts) for part, layouts in self._coded(choice))

    def _typed(self, choice: Choice) -> Iterator[tuple[PlainPart, str]]:
        for parts, names in zip(self.plain, choice.types, strict=True):
            yield from zip(parts, names, strict=True)

    def _coded(self, choice: Choice) -> list[tuple[Part, Layouts]]:
        assert self.code is not None and choice.k is not None and choice.v is not None
        return [(self.code[0], choice.k), (self.code[1], choice.v)]


# groups, and how each of them is kept
Chosen = list[tuple[Candidate, Choice]]


@dataclass(frozen=True)
class Region:
    """Neighbouring layers, and the ways to cut them into groups."""

    ways: Sequence[Sequence[Candidate]]

    def choose(self, price: Price) -> Chosen:
        """The groups, and the way to keep each of them, that cost least at this price."""
        found = [[(one, one.choose(price)) for one in way] for way in self.ways]
        return min(found, key=lambda chosen: sum(one.cost(choice, price) for one, choice in chosen))


def allocate(
    regions: Sequence[Region], fits: Callable[[Chosen], bool], time: float = 0.0
) -> tuple[Chosen, float] | None:
    """The groups and choices that fit and cost least, in loss and time together, and their loss; None where none fit.

    `fits` must hold for all choices that take fewer bytes than choices for which it holds. A unit that attention reads
    is paid for like `time` bytes; then a higher price may leave units out and give others more bits, so that bytes fall
    with the price only in the large.
    """

    def at(price: float) -> Chosen:
        return [one for region in regions for one in region.choose(Price(price, price * time))]

    low, high = LOWEST, HIGHEST
    best = at(high)
    if not fits(best):
        return None
    for _ in range(100):
        price = (low * high) ** 0.5
        chosen = at(price)
        if fits(chosen):
            best, high = chosen, price
        else:
            low = price
    return best, sum(one.loss(choice) for one, choice in best)

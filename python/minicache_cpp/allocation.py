"""Handing out bits: which widths, and which layers plainly, lose least within so many bytes.

The loss of a plan is taken to be the sum of its parts' losses, each a part's squared error times its sensitivity
(what the model's output loses for so much error, as measured). At a price for each byte every part is chosen by
itself; the price is searched for at which all of them fit (reverse water-filling; Shoham and Gersho 1988).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .code_fit import CHOICES
from .code_format import MAG_BYTES, UNIT, Layout

LOWEST, HIGHEST = 1e-24, 1e12  # prices that are tried


@dataclass(frozen=True)
class Part:
    """K, or V, of a pair."""

    errors: NDArray[np.float64]  # [choice, unit], over all KV heads
    sensitivity: float
    n_head_kv: int

    def layout(self, price: float) -> Layout:
        """The widths that cost least, at so much for a byte of each token."""
        widths = np.array(CHOICES)
        unit_bytes = self.n_head_kv * UNIT / 8 * widths
        best = widths[(self.sensitivity * self.errors + price * unit_bytes[:, None]).argmin(axis=0)]
        # segments go from wide to narrow, and variances fall: what breaks the order is noise
        return Layout.of(np.minimum.accumulate(best).tolist())

    def error(self, layout: Layout) -> float:
        widths = layout.widths + [0] * (self.errors.shape[1] - len(layout.widths))
        return float(sum(self.errors[CHOICES.index(width), unit] for unit, width in enumerate(widths)))

    def loss(self, layout: Layout) -> float:
        return self.sensitivity * self.error(layout)

    def token_bytes(self, layout: Layout) -> float:
        return self.n_head_kv * (MAG_BYTES + layout.bits / 8)


@dataclass(frozen=True)
class Candidate:
    """A pair, and what it would cost to leave it plain."""

    a: int
    b: int
    k: Part
    v: Part
    plain_loss: float
    plain_bytes: float  # of each token, both layers

    def choose(self, price: float) -> Choice:
        choice = Choice(self.k.layout(price), self.v.layout(price))
        coded = self.loss(choice) + price * self.token_bytes(choice)
        return choice if coded <= self.plain_loss + price * self.plain_bytes else PLAIN

    def loss(self, choice: Choice) -> float:
        if choice.k is None or choice.v is None:
            return self.plain_loss
        return self.k.loss(choice.k) + self.v.loss(choice.v)

    def token_bytes(self, choice: Choice) -> float:
        if choice.k is None or choice.v is None:
            return self.plain_bytes
        return self.k.token_bytes(choice.k) + self.v.token_bytes(choice.v)


@dataclass(frozen=True)
class Choice:
    """The codes of a pair's K and V, or none: the pair stays plain."""

    k: Layout | None = None
    v: Layout | None = None


PLAIN = Choice()


def allocate(
    candidates: Sequence[Candidate], fits: Callable[[list[Choice]], bool]
) -> tuple[list[Choice], float] | None:
    """The choices of least loss that fit, and their loss; None where nothing does. What is cheaper must fit, too."""

    def at(price: float) -> list[Choice]:
        return [candidate.choose(price) for candidate in candidates]

    low, high = LOWEST, HIGHEST
    best = at(high)
    if not fits(best):
        return None
    for _ in range(100):
        price = (low * high) ** 0.5
        choices = at(price)
        if fits(choices):
            best, high = choices, price
        else:
            low = price
    return best, sum(one.loss(choice) for one, choice in zip(candidates, best, strict=True))

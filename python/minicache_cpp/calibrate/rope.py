"""RoPE, as it turns the K of one layer (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Rope:
    """How RoPE turns the K of a layer: by position times freq[i], in the plane of the i-th pair of numbers."""

    # which numbers of a head are a pair: "none", "neighbours" (2i, 2i + 1) or "halves" (i, i + n_rot/2)
    kind: str
    # radians per position, one for each pair
    freq: tuple[float, ...] = ()

    @property
    def pairs(self) -> NDArray[np.int64]:
        """The indices of the two numbers of each pair, [2, n_rot/2]."""
        n = len(self.freq)
        numbers = np.arange(2 * n)
        return np.asarray(numbers.reshape(n, 2).T if self.kind == "neighbours" else numbers.reshape(2, n))

    def turn(self, x: Floats, positions: NDArray[np.int64]) -> Floats:
        """Turns each row of x [n, heads, d] by its position, positions [n]; negative positions turn it back."""
        if self.kind == "none":
            return x
        first, second = self.pairs
        # base positions are few
        places, place = np.unique(positions, return_inverse=True)
        turns = np.exp(1j * places[:, None] * np.array(self.freq)).astype(np.complex64)
        z = (x[..., first] + np.complex64(1j) * x[..., second]) * turns[place][:, None]
        turned = np.array(x, dtype=np.float32)
        turned[..., first], turned[..., second] = z.real, z.imag
        return turned

    def paired_mean(self, x: Doubles) -> Doubles:
        """Replaces the two numbers of each pair, along the last axis of x, by their mean."""
        if self.kind == "none":
            return x
        first, second = self.pairs
        mean = (x[..., first] + x[..., second]) / 2
        result = np.array(x)
        result[..., first] = result[..., second] = mean
        return result

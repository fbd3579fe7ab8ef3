"""Q, K and V of a text, as an exact cache sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rivals.simulated_cache import SimulatedCache
from rivals.transformer import read_text
from rivals.weights import Weights

Floats = NDArray[np.float32]


class Watched(SimulatedCache):
    """An exact cache that keeps the queries as well."""

    def __init__(self, weights: Weights, n_ctx: int) -> None:
        super().__init__(weights.shape.layers, n_ctx)
        self.asked: dict[int, list[Floats]] = {}

    def add(self, layer: int, q: Floats, k: Floats, v: Floats) -> None:
        super().add(layer, q, k, v)
        self.asked.setdefault(layer, []).append(q)

    def seen_of(self, layer: int) -> tuple[Floats, Floats, Floats]:
        """Q, K (both after RoPE) and V of all tokens, [tokens, heads, d] each."""
        return np.concatenate(self.asked[layer]), self.computed["k", layer], self.computed["v", layer]


def watched(weights: Weights, tokens: Sequence[int], block: int) -> Watched:
    """Reads a text, `block` tokens at a time."""
    cache = Watched(weights, len(tokens))
    for _ in read_text(weights, tokens, block, cache, len(tokens)):
        pass
    return cache

"""Which tokens of a text count most, so that their rows may be larger than others'.

A row's size must be known when it is written. What its token will be read for later is known only to a study, and is
the most that could be gained ("later"); what the tokens of the window made of it is known by then ("seen").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import KINDS, Kind
from minicache_cpp.cache.native_settings import window_first
from minicache_cpp.calibrate.attention_weights import amplified, mean_by_token
from rivals.simulated_cache import SimulatedCache
from rivals.transformer import read_text
from rivals.weights import Weights

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """How much errors in each token's K and V count on a text, relative to the mean, [tokens, n_head_kv].

    By kind and layer; for each token, the mean over its queries.
    """

    # of the queries that lie further ahead than the window, and of those that the window still holds
    later: dict[tuple[Kind, int], Doubles]
    seen: dict[tuple[Kind, int], Doubles]


class Watched(SimulatedCache):
    """An exact cache that keeps the queries as well."""

    def __init__(self, weights: Weights, n_ctx: int) -> None:
        super().__init__(weights.shape.layers, n_ctx)
        self.asked: dict[int, list[Floats]] = {}

    def add(self, layer: int, q: Floats, k: Floats, v: Floats) -> None:
        super().add(layer, q, k, v)
        self.asked.setdefault(layer, []).append(q)


def importance(
    weights: Weights, tokens: Sequence[int], block: int, gains: Sequence[Doubles | None], window: int
) -> Importance:
    """Reads a text with an exact cache, `block` tokens at a time, and sees what is made of each token.

    gains: as in Samples. window: the first and latest tokens that are read exactly.
    """
    cache = Watched(weights, len(tokens))
    for _ in read_text(weights, tokens, block, cache, len(tokens)):
        pass
    at = np.arange(len(tokens))
    distance = at[:, None] - at
    near = window - window_first(window)
    masks = distance >= near, (distance > 0) & (distance < near)
    found: tuple[dict[tuple[Kind, int], Doubles], ...] = ({}, {})
    for layer, parts in cache.asked.items():
        q, (k, v) = np.concatenate(parts), (cache.computed[kind, layer] for kind in KINDS)
        gain = gains[layer] if gains else None
        gain = gain if gain is not None else np.ones(q.shape[1])
        for result, mask in zip(found, masks, strict=True):
            read, count = amplified(q, k, v, gain, at, mask), mask.sum(axis=0)
            for kind, one in zip(KINDS, (read.tokens_k, read.tokens_v), strict=True):
                result[kind, layer] = mean_by_token(one, count, window_first(window))
    return Importance(*found)

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
from minicache_cpp.calibrate.attention import read_from_codes
from minicache_cpp.calibrate.attention_weights import amplified, mean_by_token
from rivals.weights import Weights

from .watched import watched

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """How much errors in each token's K and V count on a text, relative to the mean, [tokens, n_head_kv].

    By kind and layer; for each token, the mean over its queries.
    """

    # of the queries that lie further ahead than the window, and of those that the window still holds
    later: dict[tuple[Kind, int], Doubles]
    seen: dict[tuple[Kind, int], Doubles]


def importance(
    weights: Weights, tokens: Sequence[int], block: int, gains: Sequence[Doubles | None], window: int
) -> Importance:
    """Reads a text with an exact cache, `block` tokens at a time, and sees what is made of each token.

    gains: as in Samples. window: the first and latest tokens that are read exactly.
    """
    cache, at = watched(weights, tokens, block), np.arange(len(tokens))
    distance = at[:, None] - at
    later = read_from_codes(distance, window)
    masks = later, (distance > 0) & ~later & (at >= window_first(window))
    found: tuple[dict[tuple[Kind, int], Doubles], ...] = ({}, {})
    for layer in cache.asked:
        q, k, v = cache.seen_of(layer)
        gain = gains[layer] if gains else None
        gain = gain if gain is not None else np.ones(q.shape[1])
        for result, mask in zip(found, masks, strict=True):
            read, count = amplified(q, k, v, gain, at, mask), mask.sum(axis=0)
            for kind, one in zip(KINDS, (read.tokens_k, read.tokens_v), strict=True):
                result[kind, layer] = mean_by_token(one, count, window_first(window))
    return Importance(*found)

"""How much errors of cached K and V count, by what attention makes of them.

Attention gives o_i = Σ_j p_ij v_j. An error of v_j changes o_i by p_ij δv_j, and one of k_j, which changes the score by
s q_i·δk_j, by p_ij (s q_i·δk_j)(v_j - o_i). Errors of different tokens taken as independent, the square of what gets
into the layer's output is the sum over i of these squares, times the gain g of the output matrix. Only those tokens
count that the cache restores: those that lie no nearer than the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

MOST_QUERIES = 512  # that are looked at, evenly, of a longer text
PRIOR = 32.0  # queries of the mean weight that every token is given: few or none may have come after it


@dataclass(frozen=True)
class Read:
    """Of a layer's K and V on one text of n tokens."""

    k: Doubles  # [n_head_kv, d_k], mean weight of squared errors of k/|k|, by number
    v: Doubles  # [n_head_kv], of v/|v|
    tokens_k: Doubles  # [n, n_head_kv], the weight of each token, over the mean
    tokens_v: Doubles


def attention_weights(q: Floats, k: Floats, v: Floats, gain: Doubles, window: int) -> Read:
    """Weights of the errors of k and v, [n, n_head_kv, d], that q [n, n_head, d_k] reads; gain [n_head] is g.

    The scale is taken to be 1/√d_k, as it is in nearly all models.
    """
    (n, n_head, d), n_kv = q.shape, k.shape[1]
    at = np.arange(n)
    asked = at[:: max(1, n // MOST_QUERIES)]
    seen = asked[:, None] >= at
    coded = asked[:, None] - at >= max(1, min(window, n // 2))
    count = coded.sum(axis=0)
    weight_k, weight_v = np.zeros((n_kv, d)), np.zeros(n_kv)
    read_k, read_v = np.zeros((n, n_kv)), np.zeros((n, n_kv))
    for head in range(n_head):
        kv = head * n_kv // n_head
        queries, keys, values = q[asked, head], k[:, kv], v[:, kv]
        scores = np.where(seen, queries @ keys.T / math.sqrt(d), -np.inf)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        o = p @ values
        squares = np.where(coded, p * p, 0) * float(gain[head])
        length_k, length_v = (keys**2).sum(axis=1), (values**2).sum(axis=1)
        far = np.maximum(length_v + (o**2).sum(axis=1)[:, None] - 2 * o @ values.T, 0)
        changed = squares * far / d * length_k  # [i, j], for each q_i·δk_j of a unit vector
        weight_k[kv] += changed.sum(axis=1, dtype=np.float64) @ queries.astype(np.float64) ** 2 / len(asked)
        read_k[:, kv] += changed.T @ (queries**2).sum(axis=1)
        of_v = squares.sum(axis=0) * length_v
        weight_v[kv] += of_v.sum(dtype=np.float64) / len(asked)
        read_v[:, kv] += of_v
    return Read(weight_k, weight_v, _by_token(read_k, count), _by_token(read_v, count))


def _by_token(read: Doubles, count: NDArray[np.int64]) -> Doubles:
    """Sums over so many queries as means, drawn to the mean of all where they are few, over the mean."""
    mean = np.maximum(read.sum(axis=0) / max(1, count.sum()), 1e-30)
    tokens = (read + PRIOR * mean) / (count[:, None] + PRIOR)
    return np.asarray(tokens / tokens.mean(axis=0))

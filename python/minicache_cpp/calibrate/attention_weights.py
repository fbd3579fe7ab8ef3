"""How much attention amplifies an error in cached K and V.

Attention computes o_i = Σ_j p_ij v_j. An error δv_j of v_j changes o_i by p_ij δv_j. An error δk_j of k_j changes the
score by s q_i·δk_j, and so o_i by p_ij (s q_i·δk_j)(v_j - o_i), to first order. With errors of different tokens taken
as independent, the squared error of the layer's output is the sum of these squares over i, times the gain g of the
output matrix. Only tokens that the cache restores count: those that the window does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cache.native_settings import window_first
from .attention import read_from_codes

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# the most queries of a text that are used, spread evenly
MOST_QUERIES = 128
# queries of mean weight that are added for every token, as few or none may come after it
PRIOR = 32.0


@dataclass(frozen=True)
class AttentionWeights:
    """The weights of squared errors in a layer's K and V on a text of n tokens."""

    # [n_head_kv, d_k], of each number of k/|k|, mean over the tokens
    k: Doubles
    # [n_head_kv], of v/|v|, mean over the tokens
    v: Doubles
    # [n, n_head_kv], of each token, relative to the mean
    tokens_k: Doubles
    tokens_v: Doubles


@dataclass(frozen=True)
class Amplified:
    """How much a layer's attention amplifies squared errors of unit vectors k/|k| and v/|v|: sums over its queries."""

    # [n_head_kv, d_k], of each number of k/|k|, and [n_head_kv], of v/|v|; over all tokens
    k: Doubles
    v: Doubles
    # [n, n_head_kv], of each token
    tokens_k: Doubles
    tokens_v: Doubles


def attention_weights(q: Floats, k: Floats, v: Floats, gain: Doubles, window: int) -> AttentionWeights:
    """The weights of errors in k and v, [n, n_head_kv, d], which q, [n, n_head, d_k], reads; gain [n_head] is g.

    The scale s is taken to be 1/√d_k, which it is in nearly all models.
    """
    n = len(q)
    at = np.arange(n)
    asked = at[:: max(1, n // MOST_QUERIES)]
    window = min(window, n // 2)
    coded = read_from_codes(asked[:, None] - at, window)
    found, count = amplified(q, k, v, gain, asked, coded), coded.sum(axis=0)
    # the window's first tokens are never read from their codes, whatever comes after this text
    held = window_first(window)
    by_token = (mean_by_token(read, count, held) for read in (found.tokens_k, found.tokens_v))
    return AttentionWeights(found.k / len(asked), found.v / len(asked), *by_token)


def amplified(
    q: Floats, k: Floats, v: Floats, gain: Doubles, asked: NDArray[np.int64], counted: NDArray[np.bool_]
) -> Amplified:
    """What the queries of the tokens `asked` [i] make of errors in k and v, [n, n_head_kv, d].

    q is [n, n_head, d_k], gain [n_head]. What query i reads of token j counts only where counted[i, j].
    """
    n, n_kv, d = k.shape
    weight_k, weight_v = np.zeros((n_kv, d)), np.zeros(n_kv)
    read_k, read_v = np.zeros((n, n_kv)), np.zeros((n, n_kv))
    for one in reads_by_head(q, k, v, gain, asked, counted):
        squares = one.queries**2
        weight_k[one.kv] += one.of_k.sum(axis=1, dtype=np.float64) @ squares.astype(np.float64)
        read_k[:, one.kv] += one.of_k.T @ squares.sum(axis=1)
        weight_v[one.kv] += one.of_v.sum(dtype=np.float64)
        read_v[:, one.kv] += one.of_v
    return Amplified(weight_k, weight_v, read_k, read_v)


@dataclass(frozen=True)
class HeadRead:
    """What a query head makes of errors, as squared changes of its result, times its gain."""

    # the KV head that it reads, and its queries, [i, d_k]
    kv: int
    queries: Floats
    # [i, j]: for each unit of (q_i·δu_j)², where δu_j is the error of u_j = k_j/|k_j|
    of_k: Floats
    # [j]: for each unit of the squared error of v_j/|v_j|
    of_v: Floats


def reads_by_head(
    q: Floats, k: Floats, v: Floats, gain: Doubles, asked: NDArray[np.int64], counted: NDArray[np.bool_]
) -> Iterator[HeadRead]:
    """What each query head makes of errors in k and v; the arguments are those of amplified()."""
    (n, n_head, d), n_kv = q.shape, k.shape[1]
    seen = asked[:, None] >= np.arange(n)
    for head in range(n_head):
        kv = head * n_kv // n_head
        queries, keys, values = q[asked, head], k[:, kv], v[:, kv]
        scores = np.where(seen, queries @ keys.T / math.sqrt(d), -np.inf)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        o = p @ values
        squares = np.where(counted, p * p, 0) * float(gain[head])
        length_k, length_v = (keys**2).sum(axis=1), (values**2).sum(axis=1)
        far = np.maximum(length_v + (o**2).sum(axis=1)[:, None] - 2 * o @ values.T, 0)
        yield HeadRead(kv, queries, squares * far / d * length_k, squares.sum(axis=0) * length_v)


def mean_by_token(read: Doubles, count: NDArray[np.int64], held: int) -> Doubles:
    """Divides the sums by the number of queries and normalises the result to mean 1; the first `held` tokens get 0.

    Where the queries are few, the quotients are shrunk towards the overall mean.
    """
    mean = np.maximum(read.sum(axis=0) / max(1, count.sum()), 1e-30)
    tokens = (read + PRIOR * mean) / (count[:, None] + PRIOR)
    tokens[:held] = 0
    return np.asarray(tokens / tokens.mean(axis=0))

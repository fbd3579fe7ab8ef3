"""What attention returns, and how that changes where a cache restores its K and V from a code."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..cache.native_settings import window_first

Floats = NDArray[np.float32]


def attention(q: Floats, k: Floats, v: Floats, restored_k: Floats, restored_v: Floats, window: int) -> Floats:
    """The result of causal attention for the last tokens of a text, [queries, n_head, d_v].

    q [queries, n_head, d_k] are the queries of the last tokens, k and v [tokens, n_head_kv, d] are exact, and
    restored_k and restored_v are read in their place from tokens that a window of so many tokens does not hold. The
    scale is taken to be 1/√d_k, which it is in nearly all models.
    """
    (n_query, n_head, d), (n, n_kv) = q.shape, k.shape[:2]
    behind = np.arange(n - n_query, n)[:, None] - np.arange(n)
    coded = read_from_codes(behind, window)
    result = np.empty((n_query, n_head, v.shape[2]), np.float32)
    for head in range(n_head):
        kv, queries = head * n_kv // n_head, q[:, head] / math.sqrt(d)
        scores = np.where(coded, queries @ restored_k[:, kv].T, queries @ k[:, kv].T)
        scores = np.where(behind >= 0, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        result[:, head] = np.where(coded, p, 0) @ restored_v[:, kv] + np.where(coded, 0, p) @ v[:, kv]
    return result


def read_from_codes(behind: NDArray[np.int64], window: int) -> NDArray[np.bool_]:
    """Which tokens a query reads from their codes: those that the window holds neither as first nor as latest tokens.

    behind [queries, tokens] is how far each token of a text lies behind a query.
    """
    first = window_first(window)
    coded = behind >= max(1, window - first)
    coded[:, :first] = False
    return coded

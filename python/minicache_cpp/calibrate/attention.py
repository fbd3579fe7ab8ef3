"""What attention returns, and how that changes where a cache restores its K and V from a code."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def attention(q: Floats, k: Floats, v: Floats, restored_k: Floats, restored_v: Floats, window: int) -> Floats:
    """The result of causal attention for the last tokens of a text, [queries, n_head, d_v].

    q [queries, n_head, d_k] are the queries of the last tokens, k and v [tokens, n_head_kv, d] are exact, and
    restored_k and restored_v are read in their place from tokens that lie `window` or more behind the query. The
    scale is taken to be 1/√d_k, which it is in nearly all models.
    """
    (n_query, n_head, d), (n, n_kv) = q.shape, k.shape[:2]
    behind = np.arange(n - n_query, n)[:, None] - np.arange(n)
    coded = behind >= max(1, window)
    result = np.empty((n_query, n_head, v.shape[2]), np.float32)
    for head in range(n_head):
        kv, queries = head * n_kv // n_head, q[:, head] / math.sqrt(d)
        scores = np.where(coded, queries @ restored_k[:, kv].T, queries @ k[:, kv].T)
        scores = np.where(behind >= 0, scores, -np.inf)
        p = np.exp(scores - scores.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        result[:, head] = np.where(coded, p, 0) @ restored_v[:, kv] + np.where(coded, 0, p) @ v[:, kv]
    return result

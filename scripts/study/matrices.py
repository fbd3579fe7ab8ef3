"""Full matrices of weights: an error δ of a vector costs δᵀMδ, where plans count the numbers of δ one by one.

For V, M is that of the output matrix, of the heads that read it as much as they do. For K it is the mean of qqᵀ over
the queries, turned back to the key's base position, by how much attention amplifies the error of a score.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import KINDS, Kind
from minicache_cpp.calibrate.attention import read_from_codes
from minicache_cpp.calibrate.attention_weights import reads_by_head
from rivals.weights import Weights

from .watched import Watched, watched

Doubles = NDArray[np.float64]
# [n_head_kv, d, d], by kind and layer
Matrices = dict[tuple[Kind, int], Doubles]

# texts that are read, of a calibration's chunks
TEXTS = 4
# eigenvalues are at least this part of their mean, as of what few queries ask for on one text
LEAST = 1e-3


def full_weights(
    weights: Weights, texts: Sequence[Sequence[int]], block: int, rope_block: int, window: int
) -> Matrices:
    """The matrices of all layers on some texts, which are read `block` tokens at a time."""
    layers = weights.shape.layers
    found: Matrices = {
        (kind, number): np.zeros((layer.n_head_kv, *(2 * [size])))
        for number, layer in enumerate(layers)
        for kind, size in zip(KINDS, (layer.head_size_k, layer.head_size_v), strict=True)
    }
    for tokens in texts:
        cache = watched(weights, tokens, block)
        for number in cache.asked:
            _add(found, weights, number, cache, rope_block or len(tokens), window)
    return found


def _add(
    found: Matrices, weights: Weights, number: int, cache: Watched, rope_block: int, window: int
) -> None:
    """Adds what the queries of a text make of errors in a layer."""
    q, k, v = cache.seen_of(number)
    at, d_v = np.arange(len(q)), v.shape[2]
    output = weights.layer(number)["attn_output.weight"].astype(np.float64)
    counted = read_from_codes(at[:, None] - at, window)
    for head, one in enumerate(reads_by_head(q, k, v, np.ones(q.shape[1]), at, counted)):
        rows = output[:, head * d_v : (head + 1) * d_v]
        found["v", number][one.kv] += one.of_v.sum() * (rows.T @ rows)
        gain = float((rows**2).sum()) / d_v
        for base in range(0, len(q), rope_block):
            turned = weights.rope.turn(one.queries[:, None], np.full(len(q), -base))[:, 0].astype(np.float64)
            count = one.of_k[:, base : base + rope_block].sum(axis=1, dtype=np.float64)
            found["k", number][one.kv] += gain * (turned.T * count) @ turned


def root_of(matrix: Doubles, trace: float) -> Doubles:
    """The symmetric root of a matrix that is scaled to this trace."""
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, LEAST * values.mean())
    return np.asarray((vectors * np.sqrt(values * trace / values.sum())) @ vectors.T)

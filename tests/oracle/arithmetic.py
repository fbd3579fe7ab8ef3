"""The formulas of MiniCache on arrays: merge, restore, and attention with all of its options."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .quant import F16_MAX, round_magnitude, round_trip

Array = npt.NDArray[np.floating]

# within this angle of 0 or π, the sines of SLERP carry no information in float32
SMALL_ANGLE = 1e-3


class Merged(NamedTuple):
    direction: Array  # [..., head_size]
    mag_a: Array  # [...]
    mag_b: Array
    distance: Array


def merge(x_a: Array, x_b: Array, t: float) -> Merged:
    """Merges along the last axis by equations 3 and 4 of the paper, with our rules for the edges it leaves open."""
    x_a, x_b = (np.asarray(x, dtype=np.float64) for x in (x_a, x_b))
    norm_a, norm_b = (np.linalg.norm(x, axis=-1) for x in (x_a, x_b))
    zero_a, zero_b = norm_a == 0, norm_b == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        u_a, u_b = x_a / norm_a[..., None], x_b / norm_b[..., None]
    u_a, u_b = (np.nan_to_num(u, nan=0, posinf=0, neginf=0) for u in (u_a, u_b))
    u_a, u_b = np.where(zero_a[..., None], u_b, u_a), np.where(zero_b[..., None], u_a, u_b)

    angle = np.arccos(np.clip((u_a * u_b).sum(-1), -1, 1))
    angle[zero_a | zero_b] = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        weight_a = np.sin((1 - t) * angle) / np.sin(angle)
        weight_b = np.sin(t * angle) / np.sin(angle)
    slerp = weight_a[..., None] * u_a + weight_b[..., None] * u_b
    blend = (1 - t) * u_a + t * u_b
    with np.errstate(divide="ignore", invalid="ignore"):
        blend = np.nan_to_num(blend / np.linalg.norm(blend, axis=-1, keepdims=True))
    near, opposite = (angle < SMALL_ANGLE)[..., None], (np.pi - angle < SMALL_ANGLE)[..., None]
    direction = np.where(near, blend, np.where(opposite, u_a, slerp))
    angle = np.where(opposite[..., 0], np.pi, angle)
    return Merged(direction, np.minimum(norm_a, F16_MAX), np.minimum(norm_b, F16_MAX), angle / np.pi)


def restore(direction: Array, mag: Array) -> Array:
    return np.asarray(direction, dtype=np.float64) * np.asarray(mag, dtype=np.float64)[..., None]


def alibi_slopes(n_head: int, max_bias: float) -> Array:
    if max_bias == 0:
        return np.ones(n_head)
    base = 2 ** int(np.log2(n_head))
    head = np.arange(n_head)
    slope = 2.0 ** (-max_bias * (head + 1) / base)
    return np.where(head < base, slope, 2.0 ** (-max_bias / 2 * (2 * (head - base) + 1) / base))


def attention(
    q: Array,  # [n_q, n_head, head_size]
    k: Array,  # [n_kv, n_head_kv, head_size]
    v: Array,
    *,
    mag_k: Array | None = None,  # [n_kv, n_head_kv]
    mag_v: Array | None = None,
    mask: Array | None = None,  # [n_q, n_kv]
    scale: float | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
    sinks: Array | None = None,  # [n_head]
    softcap: float = 0.0,
    max_bias: float = 0.0,
    retained: Array | None = None,  # cells that take pool_k and pool_v
    pool_k: Array | None = None,
    pool_v: Array | None = None,
    type_pool: str = "q8_0",
    current: Array | None = None,  # cells that take cur_k and cur_v
    cur_k: Array | None = None,
    cur_v: Array | None = None,
) -> Array:
    """What `kernels.attention` computes: rows are rounded as they are stored, then restored, then attended to."""
    n_kv, n_head_kv = k.shape[:2]
    ones = np.ones((n_kv, n_head_kv))
    keys = restore(round_trip(k, type_k), ones if mag_k is None else round_magnitude(mag_k))
    values = restore(round_trip(v, type_v), ones if mag_v is None else round_magnitude(mag_v))
    if retained is not None:
        assert pool_k is not None and pool_v is not None
        keys[retained], values[retained] = round_trip(pool_k, type_pool), round_trip(pool_v, type_pool)
    if current is not None:
        keys[current], values[current] = cur_k, cur_v
    bias = np.zeros((len(q), n_kv)) if mask is None else mask.astype(np.float16).astype(np.float64)
    return attend(q, keys, values, bias, scale, sinks, softcap, max_bias)


def attend(
    q: Array,
    keys: Array,
    values: Array,
    bias: Array,
    scale: float | None = None,
    sinks: Array | None = None,
    softcap: float = 0.0,
    max_bias: float = 0.0,
) -> Array:
    """Plain attention over restored rows. A query that sees nothing gives zeros."""
    n_q, n_head, head_size = q.shape
    group = n_head // keys.shape[1]
    seen = ~np.isneginf(bias).all(axis=0)
    keys, values, bias = keys[seen], values[seen], bias[:, seen]
    # head by head: [n_head, n_q, d] and [n_head, n_kv, d]
    by_head = q.astype(np.float64).swapaxes(0, 1)
    keys, values = (np.repeat(x.swapaxes(0, 1), group, axis=0) for x in (keys, values))

    scores = (1 / np.sqrt(head_size) if scale is None else scale) * (by_head @ keys.swapaxes(1, 2))
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    with np.errstate(invalid="ignore"):
        slopes = alibi_slopes(n_head, max_bias)[:, None, None]
        scores = np.where(np.isneginf(bias), -np.inf, scores + slopes * bias)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (n_head, n_q, 1))], axis=2)
    top = scores.max(axis=2, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=2, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    result: Array = (weights[..., : keys.shape[1]] @ values).swapaxes(0, 1)
    return result

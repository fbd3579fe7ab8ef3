"""SLERP of two layers' directions, and the way back (Liu et al. 2024, arXiv 2405.14366)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import MiniCacheError
from ..native import binding
from .arrays import Floats, as_floats, float_pointer, shape_of


class Merged(NamedTuple):
    """Two layers' K, or V, as one direction and two magnitudes."""

    direction: Floats  # [n_tokens, n_head_kv, head_size], of length 1
    mag_a: Floats  # [n_tokens, n_head_kv]
    mag_b: Floats  # [n_tokens, n_head_kv]
    distance: Floats  # [n_tokens, n_head_kv], Ω/π, from 0 to 1


def merge(x_a: npt.ArrayLike, x_b: npt.ArrayLike, t: float = 0.6) -> Merged:
    """Merge two layers' K, or V (eqs. 3 and 4 of the paper).

    x_a, x_b: [n_tokens, n_head_kv, head_size].
    t: where between the layers the direction lies, 0 for layer a's and 1 for layer b's.
    """
    x_a = as_floats("x_a", x_a, ("n_tokens", "n_head_kv", "head_size"))
    x_b = as_floats("x_b", x_b, ("n_tokens", "n_head_kv", "head_size"))
    if x_a.shape != x_b.shape:
        raise MiniCacheError(
            f"x_a is {shape_of(x_a)} and x_b is {shape_of(x_b)}; they must have the same shape"
        )
    if not (isinstance(t, (int, float, np.number)) and 0 <= t <= 1):
        raise MiniCacheError(f"t={t!r} is outside its range, [0, 1]")
    direction = np.zeros_like(x_a)
    mag_a, mag_b, distance = (np.zeros(x_a.shape[:2], np.float32) for _ in range(3))
    results = map(float_pointer, (direction, mag_a, mag_b, distance))
    done = binding.lib.llama_minicache_merge(float_pointer(x_a), float_pointer(x_b), *x_a.shape, t, *results)
    binding.check(done, "llama_minicache_merge")
    return Merged(direction, mag_a, mag_b, distance)


def restore(direction: npt.ArrayLike, mag: npt.ArrayLike) -> Floats:
    """One layer's K, or V, as attention sees it: magnitude times direction, [n_tokens, n_head_kv, head_size].

    direction: [n_tokens, n_head_kv, head_size]. mag: [n_tokens, n_head_kv].
    """
    direction = as_floats("direction", direction, ("n_tokens", "n_head_kv", "head_size"))
    mag = as_floats("mag", mag, ("n_tokens", "n_head_kv"))
    if mag.shape != direction.shape[:2]:
        raise MiniCacheError(
            f"mag is {shape_of(mag)}; with this direction it must be {shape_of(direction[..., 0])}"
        )
    restored: Floats = direction * mag[:, :, None]
    return restored

"""KVarN: variance-normalized quantization of the KV cache (Müller et al. 2026, arXiv 2606.03458).

A tile is the K or V of `tile` consecutive tokens of one head. After a Hadamard rotation of the channels it is divided
by a scale for each channel and one for each token, which make all channels and all tokens vary equally, and is rounded:

    X: [channels, tokens] for K, [tokens, channels] for V
    16 times:  c += log std of the columns of X/(e^c·e^r)        at first c = r = 0; both are kept within -0.3 and 10
               r += log std of the rows of X/(e^c·e^r)
    c and r are the pair, of all that occurred, for which
               max/min of the columns' std + max/min of the rows' std is least
    each row of X/(e^c·e^r) is rounded to integers of B bits between its least and its largest number

so K is rounded per channel and V per token. Stored for each row are e^r times its step and e^r times its least number,
and for each column e^c, all in f16. The standard deviations have n - 1 in their denominator.

k, v: B for K and for V; the authors' preset is 4 and 2. tile: 128 in the authors' preset.
sinks: the first tokens of a context, which are never coded; 128 in the authors' code. A tile that is not full is kept
in f16. floor: the least c and r. With the authors' -0.3 no scale is below 0.74, so that K or V of small numbers is not
normalized; a lower one is a change of their method.

Sources: the abstract, and the authors' repository huawei-csl/KVarN (Apache-2.0), namely the reference in the test of
its kernel (ascend_kernel/kvarn_store_tile_k/api_test.py) for K, and the configuration and normalization of its vLLM
backend, as copies of it on GitHub have them, for V, what is stored, and sinks. The paper's own sections were not at
hand, so it is not known whether the paper's figures use the same sinks and bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicache_cpp.cache.code_format import KINDS, Kind
from minicache_cpp.calibrate.plain_fit import hadamard
from minicache_cpp.modelfile.shape import ModelShape

from .method import HALF, Floats, LayerMethod, head_size, require

ITERATIONS = 16
# bounds of a standard deviation before its logarithm is taken, and of a logarithm
LEAST_STD, MOST_STD, MOST_LOG = 1e-3, 1e3, 10.0


@dataclass(frozen=True)
class KVarN(LayerMethod):
    """KVarN with these parameters, in bits and tokens."""

    shape: ModelShape
    k: int = 4
    v: int = 4
    tile: int = 128
    sinks: int = 128
    floor: float = -0.3

    def __post_init__(self) -> None:
        require("k", self.k, 1 <= self.k <= 8, "1 to 8")
        require("v", self.v, 1 <= self.v <= 8, "1 to 8")
        require("tile", self.tile, self.tile > 1, "2 or more")
        sizes = {head_size(kind, layer) for kind in KINDS for layer in self.shape.layers}
        for size in sizes:
            require("the head size", size, size & (size - 1) == 0, "a power of two for a Hadamard matrix")
        whole = self.sinks >= 0 and self.sinks % self.tile == 0
        require("sinks", self.sinks, whole, f"a multiple of tile, {self.tile}")

    def first_coded(self, layers: tuple[int, ...]) -> int:
        return self.sinks

    def coded_end(self, kind: Kind, layers: tuple[int, ...], n_tokens: int, tail: int) -> int:
        return max(0, n_tokens - tail) // self.tile * self.tile

    def restore(self, kind: Kind, x: Floats, layers: tuple[int, ...], first: int) -> Floats:
        d = x.shape[-1]
        # [tiles, heads, tokens, channels]
        tiles = hadamard(x, d).reshape(-1, self.tile, x.shape[2], d).transpose(0, 2, 1, 3)
        if kind == "k":
            restored = self._tiles(tiles.swapaxes(2, 3), self.k).swapaxes(2, 3)
        else:
            restored = self._tiles(tiles, self.v)
        return hadamard(restored.transpose(0, 2, 1, 3).reshape(x.shape), d)

    def head_bits(self, kind: Kind, d: int) -> float:
        # of each tile 2 numbers of f16 for a row and 1 for a column, shared by its tokens
        per_tile = 2 * d + self.tile if kind == "k" else d + 2 * self.tile
        return d * (self.k if kind == "k" else self.v) + HALF * per_tile / self.tile

    def _tiles(self, x: Floats, bits: int) -> Floats:
        """What is restored of tiles [..., rows, columns]."""
        columns, rows = balance(x, self.floor)
        balanced = x / columns / rows
        low, high = balanced.min(axis=-1, keepdims=True), balanced.max(axis=-1, keepdims=True)
        step = np.maximum((high - low) / (2**bits - 1), 1e-10)
        level = np.clip(np.rint((balanced - low) / step), 0, 2**bits - 1)
        restored = (level * _half(rows * step) + _half(rows * low)) * _half(columns)
        return np.asarray(restored, dtype=np.float32)


def balance(x: Floats, floor: float = -0.3) -> tuple[Floats, Floats]:
    """The scales of the columns [..., 1, columns] and rows [..., rows, 1] of tiles x [..., rows, columns]."""
    c, r = np.zeros_like(x[..., :1, :]), np.zeros_like(x[..., :1])
    best_c, best_r, least = c, r, _imbalance(x)
    for _ in range(ITERATIONS):
        c = np.asarray(np.clip(c + _log_std(x / np.exp(c + r), -2), floor, MOST_LOG))
        r = np.asarray(np.clip(r + _log_std(x / np.exp(c + r), -1), floor, MOST_LOG))
        found = _imbalance(x / np.exp(c + r))
        better = found <= least
        best_c, best_r = np.where(better, c, best_c), np.where(better, r, best_r)
        least = np.where(better, found, least)
    return np.exp(best_c), np.exp(best_r)


def _log_std(x: Floats, axis: int) -> Floats:
    return np.asarray(np.log(np.clip(x.std(axis=axis, ddof=1, keepdims=True), LEAST_STD, MOST_STD)))


def _imbalance(x: Floats) -> Floats:
    """How unequal the standard deviations of tiles [..., rows, columns] are; 2 for a balanced one, [..., 1, 1]."""
    ratios = []
    for axis in (-2, -1):
        std = x.std(axis=axis, ddof=1, keepdims=True)
        ratios.append(
            std.max(axis=(-2, -1), keepdims=True) / np.maximum(std.min(axis=(-2, -1), keepdims=True), 1e-8)
        )
    return np.asarray(sum(ratios), dtype=np.float32)


def _half(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)

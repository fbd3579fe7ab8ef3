"""KIVI: a tuning-free asymmetric 2-bit quantization of the KV cache (Liu et al. 2024, arXiv 2402.02750).

Each group of numbers is rounded to integers of B bits between its own least and largest number:

    z = min x    s = (max x - min x)/(2^B - 1)    q = round((x - z)/s)    x̂ = q·s + z

K is quantized per channel: a group is `group` consecutive tokens of one channel of a head. V is quantized per token: a
group is `group` consecutive channels of one token. Recent tokens stay in full precision: for K up to `residual` tokens,
which are quantized all at once when there are as many; for V the latest `residual`.

bits: B, 2 or 4 in the paper. group: 32 in the paper. residual: 32 here; the paper has 32 and 128.

z and s are stored in f16, so that 2 bits take 3 for each number, and 4 take 5. What is quantized along which axis is in
the abstract, and that groups, a residual and 32 tokens in full precision are used is in the authors' repository
(jy-yuan/KIVI). The paper's text was not at hand: its values of group and residual, when K and V leave full precision,
and the type of z and s could not be checked there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicache_cpp.cache.code_format import Kind
from minicache_cpp.modelfile.shape import ModelShape

from .method import HALF, Floats, LayerMethod, require


@dataclass(frozen=True)
class Kivi(LayerMethod):
    """KIVI with these parameters, in bits and tokens (or channels, for the groups of V)."""

    shape: ModelShape
    bits: int = 2
    group: int = 32
    residual: int = 32

    def __post_init__(self) -> None:
        require("bits", self.bits, 1 <= self.bits <= 8, "1 to 8")
        sizes = {layer.head_size_v for layer in self.shape.layers}
        fits = self.group > 0 and all(size % self.group == 0 for size in sizes)
        require("group", self.group, fits, f"a divisor of the head size, {max(sizes)}")
        whole = self.residual > 0 and self.residual % self.group == 0
        require("residual", self.residual, whole, f"a multiple of group, {self.group}")

    def coded_end(self, kind: Kind, layers: tuple[int, ...], n_tokens: int, tail: int) -> int:
        if kind == "k":
            return max(0, n_tokens - tail) // self.residual * self.residual
        return max(0, n_tokens - max(self.residual, tail))

    def restore(self, kind: Kind, x: Floats, layers: tuple[int, ...], first: int) -> Floats:
        if kind == "v":
            return round_groups(x.reshape(-1, self.group), self.bits).reshape(x.shape)
        _, n, heads, d = x.shape
        groups = x.reshape(-1, self.group, heads * d).transpose(0, 2, 1)
        restored = round_groups(groups, self.bits).transpose(0, 2, 1)
        return np.asarray(restored.reshape(1, n, heads, d))

    def head_bits(self, kind: Kind, d: int) -> float:
        return d * (self.bits + 2 * HALF / self.group)


def round_groups(x: Floats, bits: int) -> Floats:
    """What is restored of groups of numbers along the last axis; their least numbers and steps are f16."""
    low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    top = 2**bits - 1
    step = ((high - low) / top).astype(np.float16).astype(np.float32)
    low = low.astype(np.float16).astype(np.float32)
    level = np.divide(x - low, step, out=np.zeros_like(x), where=step > 0)
    return np.asarray(np.clip(np.rint(level), 0, top) * step + low, dtype=np.float32)

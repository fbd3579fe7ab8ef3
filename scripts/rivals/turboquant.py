"""TurboQuant: online vector quantization with near-optimal distortion (Zandieh et al. 2025, arXiv 2504.19874).

Algorithm 1, for the least squared error, of a vector x of d numbers, with a random orthogonal matrix Π:

    y = Π·x/|x|    each y_i is replaced by the nearest of 2^B levels    x̂ = |x|·Πᵀ·ŷ

y is a random point on the unit sphere, so each of its coordinates has the density
Γ(d/2)/(√π·Γ((d-1)/2))·(1 - t²)^((d-3)/2), and the levels are those of Lloyd and Max for it. They do not depend on data.

Algorithm 2, for unbiased inner products, has B - 1 bits for that and one for the sign of a random projection of what is
left, r = x/|x| - x̂/|x| (the quantized Johnson-Lindenstrauss transform, QJL), with S [d, d] of standard Gaussians:

    x̂ = |x|·(Πᵀ·ŷ + √(π/2)/d·|r|·Sᵀ·sign(S·r))

k, v: B for K and for V. qjl: 1 for Algorithm 2 for K, because attention takes inner products with K; 0 for Algorithm 1
for both. V, of which attention takes sums, always has Algorithm 1. seed: of Π and S, which all layers and heads share.

|x| and |r| are stored in f16, and Π, S and the levels once, in float32. The paper's text was not at hand; the formulas
are as descriptions of it give them. It could not be checked which of the two algorithms its experiments with KV caches
use for K, nor whether they give some channels more bits than others. Here all channels have the same bits.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import KINDS, Kind
from minicache_cpp.calibrate.code_fit import unit_vectors
from minicache_cpp.modelfile.shape import ModelShape

from .method import HALF, Floats, LayerMethod, head_size, require

Doubles = NDArray[np.float64]

GRID = 200001
ROUNDS = 3000


@dataclass(frozen=True)
class TurboQuant(LayerMethod):
    """TurboQuant with these bits for a number of K and of V."""

    shape: ModelShape
    k: int = 4
    v: int = 4
    qjl: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        require("qjl", self.qjl, self.qjl in (0, 1), "0 or 1")
        require("k", self.k, 1 + self.qjl <= self.k <= 8, f"{1 + self.qjl} to 8")
        require("v", self.v, 1 <= self.v <= 8, "1 to 8")

    def restore(self, kind: Kind, x: Floats, layers: tuple[int, ...], first: int) -> Floats:
        length = np.linalg.norm(x, axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
        unit = unit_vectors(x)
        restored = self.restore_units(unit, self._level_bits(kind))
        if kind == "k" and self.qjl:
            restored = restored + self.restore_signs(unit - restored)
        return np.asarray(length * restored, dtype=np.float32)

    def restore_units(self, unit: Floats, bits: int) -> Floats:
        """What Algorithm 1 restores of unit vectors [..., d]."""
        d = unit.shape[-1]
        rotation = random_rotation(d, self.seed)
        levels = levels_of_sphere(d, bits)
        number = np.searchsorted((levels[1:] + levels[:-1]) / 2, unit @ rotation.T)
        return np.asarray(levels.astype(np.float32)[number] @ rotation)

    def restore_signs(self, residual: Floats) -> Floats:
        """What the signs of random projections restore of residuals [..., d]."""
        d = residual.shape[-1]
        projection = random_projection(d, self.seed)
        length = np.linalg.norm(residual, axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
        signs = np.where(residual @ projection.T >= 0, np.float32(1), np.float32(-1))
        return np.asarray(np.float32(math.sqrt(math.pi / 2) / d) * length * (signs @ projection))

    def head_bits(self, kind: Kind, d: int) -> float:
        if kind == "k":
            return float(d * self.k + (1 + self.qjl) * HALF)
        return float(d * self.v + HALF)

    @property
    def table_bytes(self) -> float:
        sizes = {(kind, head_size(kind, layer)) for kind in KINDS for layer in self.shape.layers}
        n_level = sum(2.0 ** self._level_bits(kind) for kind, _ in sizes)
        n_matrix = sum(d * d * (1 + self.qjl) for d in {d for _, d in sizes})
        return 4 * (n_level + n_matrix)

    def _level_bits(self, kind: Kind) -> int:
        return self.k - self.qjl if kind == "k" else self.v


@functools.cache
def random_rotation(d: int, seed: int) -> Floats:
    """A random orthogonal matrix [d, d]: the Q of a Gaussian matrix, signs made unique (Mezzadri 2007)."""
    q, r = np.linalg.qr(np.random.default_rng([seed, d, 1]).standard_normal((d, d)))
    return np.asarray(q * np.sign(np.diag(r)), dtype=np.float32)


@functools.cache
def random_projection(d: int, seed: int) -> Floats:
    """A matrix [d, d] of standard Gaussians."""
    return np.random.default_rng([seed, d, 2]).standard_normal((d, d)).astype(np.float32)


@functools.cache
def levels_of_sphere(d: int, bits: int) -> Doubles:
    """The 2^bits Lloyd-Max levels of a coordinate of a random unit vector of d numbers."""
    t = np.linspace(-1, 1, GRID)
    return lloyd_max(t, np.maximum(1 - t**2, 0) ** ((d - 3) / 2), bits)


def lloyd_max(t: Doubles, density: Doubles, bits: int) -> Doubles:
    """The 2^bits levels of least mean squared error for a density at the points t of a grid (Lloyd 1982, Max 1960).

    Each level becomes the mean of the numbers that are nearest to it, until that changes nothing more.
    """
    mass = np.cumsum(density) / density.sum()
    moment = np.cumsum(density * t) / density.sum()
    levels = np.interp((np.arange(2**bits) + 0.5) / 2**bits, mass, t)
    for _ in range(ROUNDS):
        edges = (levels[1:] + levels[:-1]) / 2
        masses = np.diff(np.interp(edges, t, mass), prepend=0, append=1)
        moments = np.diff(np.interp(edges, t, moment), prepend=0, append=moment[-1])
        levels = moments / masses
    return np.asarray(levels)

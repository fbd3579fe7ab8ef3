"""Quantizers of coefficients whose standard deviation is 1: uniform levels, the best levels, points, and trellis codes.

A code of w bits a coefficient has 2^w levels. Uniform ones are what plans have today (Max 1960). The best ones are
those of least squared error for a Gaussian (Lloyd 1982). Points stand for several coefficients each (Linde, Buzo and
Gray 1980), 16 or 32 of them, so that a table in a register holds them. A trellis code (Marcellin and Fischer 1990)
reads a level from a window of the row's last L bits, of which w are new, so that neighbours share bits (as in Tseng
et al. 2024, arXiv 2406.11235): a table of 2^L levels is used with w bits a coefficient. Viterbi's algorithm finds the
bits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.calibrate.code_fit import FACTORS, GAUSSIAN_STEPS

Doubles = NDArray[np.float64]

# of the sample that levels are trained on, and of the bits of a window
SAMPLE, WINDOW = 1 << 14, 6
ROUNDS = 20
# the coefficients that a point stands for, by the bits of each: 32 and 16 points
POINTS_OF = {1: 5, 2: 2}


class Quantizer(ABC):
    """Restores coefficients from codes of a width."""

    # of the coefficients' deviation, among which the best is chosen
    scales: tuple[float, ...] = FACTORS

    @abstractmethod
    def restored(self, t: Doubles, width: int) -> Doubles:
        """t [n, r], in units of each coefficient's scale, as it is restored from codes of this width along r."""

    def errors(self, t: Doubles, counts: Doubles, width: int) -> tuple[Doubles, Doubles]:
        """The best scale of each coefficient of t [n, r] and its mean squared error, weighted by counts [n]; [r]."""
        scales = np.array(self.scales)
        found = np.stack(
            [
                ((self.restored(t / scale, width) * scale - t) ** 2 * counts[:, None]).mean(axis=0)
                for scale in scales
            ]
        )
        best = found.argmin(axis=0)
        return scales[best], found[best, np.arange(t.shape[1])]


class Uniform(Quantizer):
    """Levels at equal distances."""

    def restored(self, t: Doubles, width: int) -> Doubles:
        step, top = GAUSSIAN_STEPS[width], 2.0**width - 1
        return np.asarray((np.clip(np.rint(t / step + top / 2), 0, top) - top / 2) * step)


class Best(Quantizer):
    """The levels of least squared error for a Gaussian, as whole multiples of a 127th of the largest one."""

    def restored(self, t: Doubles, width: int) -> Doubles:
        levels = best_levels(width)
        return np.asarray(levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, t)])


class Points(Quantizer):
    """One of 16 or 32 points for several coefficients, up to 2 bits each; wider codes have the best levels."""

    def restored(self, t: Doubles, width: int) -> Doubles:
        n = POINTS_OF.get(width, 1)
        if n == 1:
            return Best().restored(t, width)
        points = best_points(width)
        whole = np.concatenate([t, np.zeros((len(t), -t.shape[1] % n))], axis=1).reshape(-1, n)
        return np.asarray(points[nearest(whole, points)].reshape(len(t), -1)[:, : t.shape[1]])


class Trellis(Quantizer):
    """Levels from a window of bits, up to 4 bits; wider codes have the best levels."""

    # Viterbi's algorithm takes long, and its levels reach far
    scales = (0.8, 0.9, 1.0, 1.12, 1.25)

    def restored(self, t: Doubles, width: int) -> Doubles:
        return viterbi(t, trellis_levels(width), width) if width <= 4 else Best().restored(t, width)


@cache
def best_levels(width: int) -> Doubles:
    """The levels of Lloyd's algorithm on quantiles of a Gaussian, rounded to 8 bits, [2^width]."""
    sample = gaussian_quantiles()
    levels = np.linspace(-1, 1, 2**width) * GAUSSIAN_STEPS[width] * (2**width - 1) / 2
    for _ in range(400):
        levels = means(sample, np.searchsorted((levels[1:] + levels[:-1]) / 2, sample), levels)
    return in_8_bits(levels)


@cache
def best_points(width: int) -> Doubles:
    """The points of Lloyd's algorithm on a Gaussian of n = POINTS_OF[width] numbers, rounded to 8 bits, [points, n]."""
    n = POINTS_OF[width]
    sample = np.random.default_rng(width).standard_normal((SAMPLE, n))
    points = sample[: 2 ** (width * n)]
    for _ in range(10 * ROUNDS):
        at = nearest(sample, points)
        points = np.stack([means(sample[:, i], at, points[:, i]) for i in range(n)], axis=1)
    return in_8_bits(points)


def means(sample: Doubles, at: NDArray[np.int64], before: Doubles) -> Doubles:
    """A round of Lloyd's algorithm: the mean of the numbers at each level, or the level before where there are none."""
    sums, n = np.bincount(at, sample, len(before)), np.bincount(at, minlength=len(before))
    return np.where(n > 0, sums / np.maximum(n, 1), before)


def in_8_bits(levels: Doubles) -> Doubles:
    """Levels as whole multiples of a 127th of the largest one."""
    unit = np.abs(levels).max() / 127
    return np.asarray(np.rint(levels / unit) * unit)


def nearest(t: Doubles, points: Doubles) -> NDArray[np.int64]:
    """The nearest of the points to each row of t, [rows]."""
    return np.asarray(((points**2).sum(axis=1) - 2 * t @ points.T).argmin(axis=1))


@cache
def trellis_levels(width: int) -> Doubles:
    """The levels of a trellis code, by the bits of its window, trained on a Gaussian and rounded to 8 bits, [2^WINDOW].

    Levels in random places come out better than any order that was tried, by 0.3 dB and more.
    """
    rng = np.random.default_rng(width)
    sample = rng.standard_normal((SAMPLE // 128, 128))
    levels = rng.permutation(gaussian_quantiles()[SAMPLE // 2**WINDOW // 2 :: SAMPLE // 2**WINDOW])
    for _ in range(ROUNDS):
        levels = means(sample.ravel(), viterbi_states(sample, levels, width).ravel(), levels)
    return in_8_bits(levels)


def viterbi(t: Doubles, levels: Doubles, width: int) -> Doubles:
    return np.asarray(levels[viterbi_states(t, levels, width)])


def viterbi_states(t: Doubles, levels: Doubles, width: int) -> NDArray[np.int64]:
    """The windows of least squared error along each row of t [n, r]; what precedes a row is zeros."""
    (n, r), n_old, n_new = t.shape, 2 ** (WINDOW - width), 2**width
    # a window is old bits * n_new + new bits; its lower WINDOW - width bits are the next one's old bits
    windows = np.arange(2**WINDOW)
    cost = np.full((n, n_old), np.inf)
    cost[:, 0] = 0
    chosen = np.empty((r, n, n_old), np.int8 if n_new <= 128 else np.int16)
    leading = windows.reshape(-1, n_old)  # [those that lead to the same old bits, old bits]
    for i in range(r):
        total = cost[:, windows // n_new] + (t[:, i, None] - levels) ** 2
        by_next = total[:, leading]
        chosen[i] = by_next.argmin(axis=1)
        cost = by_next.min(axis=1)
    found = np.empty((n, r), np.int64)
    state = cost.argmin(axis=1)
    for i in range(r - 1, -1, -1):
        found[:, i] = chosen[i][np.arange(n), state].astype(np.int64) * n_old + state
        state = found[:, i] // n_new
    return found


@cache
def gaussian_quantiles() -> Doubles:
    """Quantiles of a Gaussian, evenly spread, [SAMPLE]."""
    from statistics import NormalDist

    inverse = NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / SAMPLE) for i in range(SAMPLE)])


QUANTIZERS: dict[str, Quantizer] = {
    "uniform": Uniform(),
    "best": Best(),
    "points": Points(),
    "trellis": Trellis(),
}

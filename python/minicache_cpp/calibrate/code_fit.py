"""Shared codes, fitted to samples of K or V of a group's layers.

For each KV head, the unit vectors of all layers are concatenated, each number is multiplied by the root of its weight,
and the result is expressed in its principal components (joint PCA). For each of these coefficients and each width, the
uniform quantizer with the step of least squared error is searched for (Max 1960), and its error is kept, so that bits
can be allocated (allocation.py). The codec that results is laid out as minicache-code.h says.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import UNIT, WIDTHS, Layout, Layouts

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

# widths of a coefficient in bits, by the index of a choice; 0: it is left out
CHOICES = (0, 1, 2, 3, 4, 5, 6, 8)
# the best steps for a Gaussian in standard deviations, by width, and the factors of them that are tried
GAUSSIAN_STEPS = {1: 1.596, 2: 0.9957, 3: 0.586, 4: 0.3352, 5: 0.1881, 6: 0.1041, 8: 0.0308}
FACTORS = (0.6, 0.7, 0.8, 0.9, 1.0, 1.12, 1.25, 1.45, 1.7, 2.0, 2.5)

# what the steps of a token's code may be multiplied by (minicache-code.h)
SCALES = tuple(np.float32(2 ** (i / 8)) for i in range(-6, 17))
# of these, the ones that are tried where only the length of what is restored matters, which differs by some percent
COARSE_SCALES = SCALES[2::4]

# the bins of a histogram of |coefficient|, and the width of one in standard deviations
BINS, BIN = 4096, 1 / 256
# the standard deviation of a coefficient of unit vectors below which there is nothing to code
SMALLEST = 1e-7

# Decoders are float16. They restore vectors of this length rather than 1, so that small steps stay clear of the
# subnormal numbers; the magnitudes are smaller by the same factor.
UNIT_LENGTH = 64.0

# Magnitudes are coded on a logarithmic scale. MAG_MARGIN widens the observed range on both sides. MAG_SPAN limits it
# below the largest magnitude; smaller ones are coded as its lower end.
MAG_MARGIN = np.log(2.0)
MAG_SPAN = np.log(1e4)


@dataclass(frozen=True)
class PartFit:
    """The fit of K, or of V, of a group of n layers: principal components, steps and errors of each KV head."""

    # [n_head_kv, n*d], the weights of squared errors of unit vectors
    weight: Doubles
    # [n_head_kv, n*d, r], the principal components, those of largest variance first
    vectors: Floats
    # [n_head_kv, choice, r]
    steps: Doubles
    # [n_head_kv, choice, r], weighted mean squared errors
    errors: Doubles

    @property
    def n_head_kv(self) -> int:
        return int(self.steps.shape[0])

    @property
    def n_unit(self) -> int:
        return int(self.steps.shape[2]) // UNIT

    @property
    def unit_errors(self) -> Doubles:
        """The errors of each choice and unit of 16 coefficients, [n_head_kv, choice, unit]."""
        shape = self.n_head_kv, len(CHOICES), self.n_unit, UNIT
        return np.asarray(self.errors.reshape(shape).sum(axis=3))

    def uniform(self, width: int) -> Layouts:
        """The layouts of codes with all coefficients at one width; empty ones where it is 0."""
        return (Layout.of([width] * self.n_unit),) * self.n_head_kv

    @property
    def whole(self) -> float:
        """The error of codes without coefficients."""
        return self.error(self.uniform(0))

    def error(self, layouts: Layouts) -> float:
        """The error of codes of these layouts, that of the coefficients they leave out included."""
        return float(of_layouts(self.errors, layouts).sum())

    def layer_errors(self, layouts: Layouts, n_layer: int) -> Doubles:
        """The part of that error that each of the group's layers has, [n_layer]."""
        errors = of_layouts(self.errors, layouts)
        # a component has length 1, so its squares are the shares of a coefficient's error that the numbers get
        shares = self.vectors.astype(np.float64) ** 2
        by_number = np.einsum("hic,hc->i", shares, errors)
        return np.asarray(by_number.reshape(n_layer, -1).sum(axis=1))


@dataclass(frozen=True)
class PartCodec:
    """The arrays of a codec for K, or for V."""

    layouts: Layouts
    # [n_head_kv, n, 2], log_min and log_step of each layer
    mag: Floats
    # [n_head_kv, n*d]
    weight: Floats
    # of each KV head, which has r coefficients of its own: [r]
    gain: Sequence[Floats]
    # [n*d, r]
    decoder: Sequence[NDArray[np.float16]]


def of_layouts(errors: Doubles, layouts: Layouts, unit: int = UNIT) -> Doubles:
    """Of errors [n_head_kv, choice, n], those of the choices that the layouts make, [n_head_kv, n].

    The errors are of coefficients, or with `unit` 1 of units. What is beyond a layout has the choice to be left out.
    """
    n_head_kv, _, n = errors.shape
    ends = unit * np.cumsum([one.units for one in layouts], axis=1)
    if len(ends) != n_head_kv or ends.max() > n:
        raise ValueError(f"{len(ends)} layouts of up to {ends.max()}, for {n_head_kv} heads of {n}")
    segment = (np.arange(n)[:, None] >= ends[:, None]).sum(axis=2)
    # segments are in the order of WIDTHS, choices in the opposite one
    choice = len(WIDTHS) - segment
    return np.asarray(np.take_along_axis(errors, choice[:, None], axis=1)[:, 0])


def fit_part(
    layers: Sequence[Floats],
    weight: Doubles,
    tokens: Doubles | None = None,
    widths: Collection[int] = CHOICES,
) -> PartFit:
    """Fits the code of n layers' samples, [tokens, n_head_kv, d] each.

    Squared errors are weighted by `weight` [n_head_kv, n*d], and by `tokens` [tokens, n_head_kv], of mean 1, if given.
    Steps are searched for the given widths; the errors of others but 0 are infinite.
    """
    heads = range(layers[0].shape[1])
    counts = tokens if tokens is not None else np.ones(layers[0].shape[:2])
    fits = [
        _fit_head(_weighted(layers, weight, head), counts[:, head], float(weight[head].mean()), widths)
        for head in heads
    ]
    vectors, steps, errors = (np.stack(parts) for parts in zip(*fits, strict=True))
    return PartFit(weight, vectors, steps, errors)


def make_codec(fit: PartFit, layouts: Layouts, layers: Sequence[Floats]) -> PartCodec:
    """The codec of these layouts; its magnitudes have the ranges of the samples, [tokens, n_head_kv, d] each layer."""
    numbered = zip(range(fit.n_head_kv), layouts, strict=True)
    heads = [_make_head(fit, head, layout, layers) for head, layout in numbered]
    mag, gain, decoder = zip(*heads, strict=True)
    weight = np.asarray(fit.weight / fit.weight.mean(axis=1, keepdims=True), dtype=np.float32)
    return PartCodec(layouts, np.stack(mag), weight, gain, decoder)


def codec_array(k: PartCodec, v: PartCodec) -> NDArray[np.int8]:
    """The bytes of a group's codec as a plan stores them, without what precedes them in memory."""
    words = [np.concatenate([k.mag, v.mag], axis=1), k.weight, *k.gain, v.weight, *v.gain]
    parts = [np.ascontiguousarray(array, dtype="<f4").tobytes() for array in words]
    parts += [np.ascontiguousarray(array, dtype="<f2").tobytes() for array in (*k.decoder, *v.decoder)]
    return np.frombuffer(b"".join(parts), dtype=np.int8)


def quantize(t: Floats, step: Doubles, widths: NDArray[np.int64]) -> Floats:
    """Coefficients t [tokens, r] as they are restored from codes of these steps and widths, [r] each."""
    # all in float32, in place: scales are searched for in tens of these for every token
    step, top = step.astype(np.float32), (2.0**widths - 1).astype(np.float32)
    level = np.asarray(t / step + top / 2, dtype=np.float32)
    np.clip(np.rint(level, out=level), 0, top, out=level)
    level -= top / 2
    level *= step
    return level


def token_scales(
    t: NDArray[Any],
    restore: Callable[[NDArray[Any]], NDArray[Any]],
    weight: Doubles | float = 1.0,
    scales: Sequence[np.float32] = SCALES,
) -> Floats:
    """The scale of each token's steps, of these, that loses least, [tokens].

    t [tokens, r] are coefficients, of which restore(t / scale) * scale is restored, and `weight` [r] is that of their
    squared errors.
    """
    best, least = np.ones(len(t), np.float32), np.full(len(t), np.inf)
    for scale in scales:
        lost = ((t - scale * restore(t / scale)) ** 2 * weight).sum(axis=1)
        better = lost < least
        best[better], least[better] = scale, lost[better]
    return best


def restored(fit: PartFit, width: int, x: Floats) -> Floats:
    """x [tokens, n_head_kv, d] as the code of one layer restores it with all coefficients at `width`, lengths kept."""
    result = np.empty_like(x, dtype=np.float32)
    for head, root in enumerate(np.sqrt(fit.weight)):
        y, vectors = unit_vectors(x[:, head]) * root.astype(np.float32), fit.vectors[head]
        step = fit.steps[head, CHOICES.index(width)]
        decoded = quantize(y @ vectors, step, np.full(len(step), width)) @ vectors.T
        lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (x[:, head], y, decoded)]
        result[:, head] = decoded / root * (lengths[0] * lengths[1] / np.maximum(lengths[2], 1e-20))
    return result


def unit_vectors(x: Floats) -> Floats:
    """x/|x| along the last axis; a zero vector stays zero."""
    x = x.astype(np.float32)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return np.asarray(np.divide(x, length, out=np.zeros_like(x), where=length > 0))


def _weighted(layers: Sequence[Floats], weight: Doubles, head: int) -> Floats:
    unit = np.concatenate([unit_vectors(x[:, head]) for x in layers], axis=1)
    return np.asarray(unit * np.sqrt(weight[head]), dtype=np.float32)


def _make_head(
    fit: PartFit, head: int, layout: Layout, layers: Sequence[Floats]
) -> tuple[Floats, Floats, NDArray[np.float16]]:
    """The magnitudes' ranges [n, 2], gains [r] and decoder [n*d, r] of one KV head."""
    weight, r = fit.weight[head], layout.size
    d = len(weight) // len(layers)
    widths = np.repeat(np.array(layout.widths, dtype=np.int64), UNIT)
    choice = np.array([CHOICES.index(width) for width in widths], dtype=np.int64)
    step = fit.steps[head, choice, np.arange(r)]
    vectors = fit.vectors[head][:, :r]
    decoder = vectors * step * (UNIT_LENGTH / np.sqrt(weight))[:, None]
    # the codec's weights are divided by their mean, so the gain is multiplied by it
    gain = weight.mean() / (UNIT_LENGTH * step**2)
    y = _weighted(layers, fit.weight, head)
    t, restore = y @ vectors, partial(quantize, step=step, widths=widths)
    decoded = restore(t / token_scales(t, restore, scales=COARSE_SCALES)[:, None]) @ vectors.T
    mag = np.zeros((len(layers), 2), np.float32)
    for side, x in enumerate(layers):
        own = slice(side * d, (side + 1) * d)
        lengths = np.linalg.norm(x[:, head].astype(np.float64), axis=1)
        length = np.linalg.norm(y[:, own], axis=1)
        restored = np.linalg.norm(decoded[:, own], axis=1) * UNIT_LENGTH
        seen = restored > 0
        mag[side] = _magnitudes(lengths[seen] * length[seen] / restored[seen])
    return mag, gain.astype(np.float32), decoder.astype(np.float16)


def _fit_head(
    y: Floats, counts: Doubles, weight: float, widths: Collection[int]
) -> tuple[Floats, Doubles, Doubles]:
    """The components [n*d, r], steps and errors [choice, r] of weighted unit vectors y [tokens, n*d].

    `counts` [tokens] says how much each token counts, and `weight` is the mean weight of a number.
    """
    n_token, size = y.shape
    double = y.astype(np.float64)
    _, vectors = np.linalg.eigh((double * counts[:, None]).T @ double / n_token)
    vectors = vectors[:, ::-1][:, : size // UNIT * UNIT]
    # the sign of a component is arbitrary; fix it, so that equal samples give equal bytes
    largest = np.abs(vectors).argmax(axis=0)
    vectors = np.asarray(vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])]), np.float32)
    t = y @ vectors
    deviation = np.sqrt((counts / n_token) @ (t.astype(np.float64) ** 2))
    scale = np.maximum(deviation, SMALLEST * np.sqrt(weight))
    steps, errors = _best_steps(_histograms(t / scale.astype(np.float32), counts), widths)
    steps *= scale
    errors *= deviation**2
    errors[0] = deviation**2
    return vectors, steps, errors


def _histograms(t: Floats, counts: Doubles) -> Floats:
    """The histograms of |t|, [r, bin], each row of t [n, r], in standard deviations, weighted by counts [n]."""
    n, r = t.shape
    bins = np.minimum(np.abs(t) / np.float32(BIN), BINS - 1).astype(np.int64) + BINS * np.arange(r)
    shares = np.bincount(bins.ravel(), np.repeat(counts / n, r), minlength=r * BINS)
    return np.asarray(shares.reshape(r, BINS), np.float32)


def _best_steps(histograms: Floats, widths: Collection[int] = CHOICES) -> tuple[Doubles, Doubles]:
    """The best step of each choice and coefficient and its squared error, for deviation 1, [choice, r] each."""
    r = len(histograms)
    steps, errors = np.ones((len(CHOICES), r)), np.full((len(CHOICES), r), np.inf)
    errors[0] = 1
    given = [width for width in CHOICES if width and width in widths]
    squares = np.concatenate([_tried_steps(width)[1] for width in given])
    found = (squares @ histograms.T).reshape(len(given), len(FACTORS), r)
    for width, of_width in zip(given, found, strict=True):
        best, choice = of_width.argmin(axis=0), CHOICES.index(width)
        steps[choice], errors[choice] = _tried_steps(width)[0][best], of_width[best, np.arange(r)]
    return steps, errors


@cache
def _tried_steps(width: int) -> tuple[Doubles, Floats]:
    """The steps that are tried for a width, [factor], and their squared errors in each bin, [factor, bin]."""
    middles = (np.arange(BINS) + 0.5) * BIN
    tried = GAUSSIAN_STEPS[width] * np.array(FACTORS)
    top = 2.0**width - 1
    level = np.clip(np.rint(middles / tried[:, None] + top / 2), 0, top)
    return tried, np.asarray(((level - top / 2) * tried[:, None] - middles) ** 2, np.float32)


def _magnitudes(seen: Doubles) -> tuple[float, float]:
    """log_min and log_step of the scale for magnitudes like those that were seen, with a margin on both sides."""
    logs = np.log(seen[seen > 0])
    if not len(logs):
        return 0.0, 0.01
    last = logs.max() + MAG_MARGIN
    first = max(logs.min(), logs.max() - MAG_SPAN) - MAG_MARGIN
    return float(first), float((last - first) / 254)

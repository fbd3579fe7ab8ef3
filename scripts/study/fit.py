"""Codes fitted to samples: components, the error of every coefficient at every width, and the widths that are chosen.

As minicache_cpp.calibrate.code_fit and .allocation do it, but for vectors of any layers, heads and kinds in one code,
and with the variants' quantizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import Kind
from minicache_cpp.calibrate.code_fit import MAG_MARGIN, token_scales, unit_vectors
from minicache_cpp.calibrate.group_fit import MOST_OF_TOKEN

from .knowledge import Knowledge
from .matrices import Matrices, root_of
from .quantizers import QUANTIZERS
from .variants import Variant

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

WIDTHS = (0, 1, 2, 3, 4, 5, 6, 8)
# tokens that errors are measured on
TRIED = 2048


@dataclass(frozen=True)
class Member:
    """A vector that a code is made of: the K or V of a head in a layer."""

    kind: Kind
    layer: int
    head: int


@dataclass(frozen=True)
class RowClass:
    """Tokens with the same widths: their share of all tokens, and their mean weight, which is 1 for all together."""

    share: float
    weight: float


EVEN = (RowClass(1.0, 1.0),)


@dataclass
class Fit:
    """The code of some members, without widths."""

    members: tuple[Member, ...]
    # which fits have the same widths
    sharing: tuple[object, ...]
    # of each member: the code is of unit vectors times these roots of their weights, [d], or times matrices, [d, d]
    roots: tuple[Doubles, ...]
    mean: Doubles
    # [D, r], and the coefficients' standard deviations, [r]
    vectors: Doubles
    deviation: Doubles
    # [choice, r], in standard deviations, and weighted mean squared errors
    scales: Doubles
    errors: Doubles
    # by member, log of the least magnitude and of the ratio of one to the next
    mags: list[tuple[float, float]]
    classes: Sequence[RowClass] = EVEN
    # [class, r], when they have been chosen
    widths: NDArray[np.int64] = field(default_factory=lambda: np.zeros((1, 0), int))

    @property
    def loss(self) -> float:
        """The loss that is expected of the widths."""
        lost = (
            one.share * one.weight * self.errors[np.searchsorted(WIDTHS, widths), np.arange(len(widths))]
            for one, widths in zip(self.classes, self.widths, strict=True)
        )
        return float(sum(one.sum() for one in lost))

    @property
    def coefficients(self) -> float:
        """Those that a token has in the mean."""
        kept = (self.widths > 0).sum(axis=1)
        return float(sum(one.share * n for one, n in zip(self.classes, kept, strict=True)))


def parts_of(known: Knowledge, variant: Variant) -> list[tuple[tuple[object, ...], tuple[Member, ...]]]:
    """The members of each code, and a key that is the same for those with the same widths."""
    layers = known.layers
    groups = [layers[i : i + variant.layers] for i in range(0, len(layers), variant.layers)]
    found = []
    for group in groups:
        heads = range(known.shape.layers[group[0]].n_head_kv)
        kinds: tuple[tuple[Kind, ...], ...] = (("k", "v"),) if variant.code == "kv" else (("k",), ("v",))
        for of in kinds:
            codes = [tuple(heads)] if variant.code == "heads" else [(head,) for head in heads]
            for code in codes:
                members = tuple(Member(kind, layer, head) for head in code for kind in of for layer in group)
                key = (of, group[0], *(code if variant.widths == "head" else ()))
                found.append((key, members))
    return found


def fit(
    known: Knowledge,
    variant: Variant,
    sharing: tuple[object, ...],
    members: Sequence[Member],
    matrices: Matrices | None = None,
) -> Fit:
    """The code of these members, whose errors are weighted number by number, or by matrices where these are given."""
    x = [known.read(m.kind, m.layer, variant.block)[:, m.head] for m in members]
    weights = [known.weights[m.layer][m.kind][m.head] for m in members]
    roots = tuple(
        np.sqrt(w) if matrices is None else root_of(matrices[m.kind, m.layer][m.head], float(w.sum()))
        for w, m in zip(weights, members, strict=True)
    )
    shares = sum(
        w.sum() * known.tokens(m.kind, m.layer)[:, m.head] for w, m in zip(weights, members, strict=True)
    )
    counts = np.minimum(shares / shares.mean(), MOST_OF_TOKEN)
    counts = counts / counts.mean()
    y = _weighted(x, roots)
    mean = (y * counts[:, None]).mean(axis=0) if variant.mean == "apart" else np.zeros(y.shape[1])
    y = y - mean
    _, vectors = np.linalg.eigh((y * counts[:, None]).T @ y / len(y))
    vectors = vectors[:, ::-1]
    t = y @ vectors
    deviation = np.maximum(np.sqrt((t**2 * counts[:, None]).mean(axis=0)), 1e-12)
    tried = slice(None, None, max(1, len(t) // TRIED))
    scales, errors = np.ones((len(WIDTHS), t.shape[1])), np.empty((len(WIDTHS), t.shape[1]))
    errors[0] = deviation**2
    for choice, width in enumerate(WIDTHS[1:], 1):
        quantizer = QUANTIZERS[variant.values]
        scales[choice], found = quantizer.errors(t[tried] / deviation, counts[tried], width)
        errors[choice] = found * deviation**2
    return Fit(
        tuple(members), sharing, roots, mean, vectors, deviation, scales, errors,
        _mag_scales(x, variant.mag),
    )  # fmt: skip


def _weighted(x: Sequence[Floats], roots: Sequence[Doubles]) -> Doubles:
    """The unit vectors of x, [tokens, d] each, times the roots of their weights, side by side."""
    units = [unit_vectors(one).astype(np.float64) for one in x]
    parts = [u * root if root.ndim == 1 else u @ root for u, root in zip(units, roots, strict=True)]
    return np.concatenate(parts, axis=1)


def _mag_scales(x: Sequence[Floats], bits: int) -> list[tuple[float, float]]:
    """Scales of the members' lengths with a margin, of which 0 is one value; the restored ones differ little."""
    result = []
    for one in x:
        lengths = np.linalg.norm(one, axis=1)
        logs = np.log(lengths[lengths > 0])
        # what is restored is a little shorter than a unit vector
        first, last = logs.min() - MAG_MARGIN / 2, logs.max() + MAG_MARGIN
        result.append((float(first), float((last - first) / (2**bits - 2))))
    return result


def choose_widths(fits: Sequence[Fit], variant: Variant, f16_bytes: float) -> float:
    """Sets the widths of least expected loss at the variant's ratio; returns the bytes of a token."""
    keys = list(dict.fromkeys(one.sharing for one in fits))
    together = {key: [one for one in fits if one.sharing == key] for key in keys}
    counts = np.where(np.array(WIDTHS) == 0, variant.omitted, 1.0)[:, None]
    losses = {
        key: _by_unit(counts * np.sum([one.errors for one in ones], axis=0), variant.unit)
        for key, ones in together.items()
    }
    classes = {key: ones[0].classes for key, ones in together.items()}
    unit_bytes = {key: len(ones) * variant.unit / 8 * np.array(WIDTHS) for key, ones in together.items()}
    # what attention reads takes time: a unit as much as these bytes
    reads = {
        key: sum(len(one.members) for one in ones) * variant.time * (np.array(WIDTHS) > 0)
        for key, ones in together.items()
    }
    fixed = sum(len(one.members) * variant.mag / 8 for one in fits)
    low, high = 1e-24, 1e12
    chosen: dict[tuple[object, ...], list[NDArray[np.int64]]] = {}
    taken = 0.0
    for _ in range(100):
        price = (low * high) ** 0.5
        at = {
            key: [
                (row.weight * losses[key] + price * (unit_bytes[key] + reads[key])[:, None]).argmin(axis=0)
                for row in classes[key]
            ]
            for key in keys
        }
        total = fixed + sum(
            row.share * unit_bytes[key][one].sum()
            for key in keys
            for row, one in zip(classes[key], at[key], strict=True)
        )
        if total <= f16_bytes / variant.ratio:
            chosen, taken, high = at, float(total), price
        else:
            low = price
    for key, ones in together.items():
        widths = np.repeat(np.array(WIDTHS)[np.array(chosen[key])], variant.unit, axis=1)
        for one in ones:
            one.widths = widths[:, : len(one.deviation)]
    return taken


def _by_unit(errors: Doubles, unit: int) -> Doubles:
    missing = -errors.shape[1] % unit
    padded = np.pad(errors, ((0, 0), (0, missing)))
    return np.asarray(padded.reshape(len(errors), -1, unit).sum(axis=2))


def restore(one: Fit, x: Sequence[Floats], rows: NDArray[np.int64], variant: Variant) -> list[Floats]:
    """What the code restores of its members' vectors, [tokens, d] each, of tokens of these classes, [tokens]."""
    y = _weighted(x, one.roots)
    t = (y - one.mean) @ one.vectors / one.deviation
    coded = np.empty_like(t)
    for row, widths in enumerate(one.widths):
        coded[rows == row] = _coded(one, t[rows == row], widths, variant)
    back = (coded * one.deviation) @ one.vectors.T + one.mean
    result, at = [], 0
    for vector, root, (first, step) in zip(x, one.roots, one.mags, strict=True):
        own = slice(at, at + vector.shape[1])
        at = own.stop
        length = np.linalg.norm(vector, axis=1).astype(np.float64)
        magnitude = length * _scale(y[:, own], back[:, own], variant.length)
        level = np.clip(np.rint((np.log(np.maximum(magnitude, 1e-30)) - first) / step), 0, 2**variant.mag - 2)
        unit = back[:, own] / root if root.ndim == 1 else np.linalg.solve(root, back[:, own].T).T
        restored = unit * np.exp(first + level * step)[:, None]
        result.append(np.where(length[:, None] > 0, restored, 0).astype(np.float32))
    return result


def _coded(one: Fit, t: Doubles, widths: NDArray[np.int64], variant: Variant) -> Doubles:
    """Coefficients t [n, r], in standard deviations, as the code restores them with these widths [r]."""

    def quantized(x: Doubles) -> Doubles:
        coded = np.zeros_like(x)
        for choice, width in enumerate(WIDTHS[1:], 1):
            columns = np.flatnonzero(widths == width)
            if len(columns):
                scale = one.scales[choice, columns]
                coded[:, columns] = QUANTIZERS[variant.values].restored(x[:, columns] / scale, width) * scale
        return coded

    if variant.scale == "fixed":
        return quantized(t)
    scales = token_scales(t, quantized, one.deviation**2)[:, None]
    return quantized(t / scales) * scales


def _scale(y: Doubles, back: Doubles, length: str) -> Doubles:
    """What restored unit vectors, [n, d], are multiplied by, where errors are weighted.

    "kept" is what plans do (minicache-code.h). The others make the part along y as long as y, which the rest of the
    error lengthens, or make the error least, which shortens what is restored.
    """
    seen, found, along = (
        np.maximum((a * b).sum(axis=1), 1e-20) for a, b in ((y, y), (back, back), (y, back))
    )
    if length == "unbiased":
        return np.asarray(np.minimum(seen / along, 4.0))
    return np.asarray(along / found if length == "least" else np.sqrt(seen / found))

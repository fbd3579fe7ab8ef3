"""Shared codes on arrays: K or V of a group's layers as a row of bytes for each token, and attention over rows.

A row has the code rows of the KV heads, each of which has a layout of its own. Written from the text of
`minicache-code.h`: unit vectors, weights, projections, levels, planes of bits, magnitudes. Arrays are [n_tokens, ...],
those of all KV heads [n_tokens, n_head_kv, ...], and everything is float64 until a number is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .arithmetic import attend

Array = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Bytes = npt.NDArray[np.uint8]

WIDTHS = (8, 6, 5, 4, 3, 2, 1)
# the bits of each plane of a width, the upper bits first
PLANES = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1), 2: (2,), 1: (1,)}
UNIT = 16
ROPES = ("none", "neighbours", "halves")
# what the steps of a code may be multiplied by
SCALES = np.array([2.0 ** (i / 8) for i in range(-6, 17)])
F32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Layout:
    """Units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits."""

    units: tuple[int, ...]

    @property
    def widths(self) -> Ints:
        """The bits of each coefficient, [r]."""
        return np.repeat(np.array(WIDTHS), UNIT * np.array(self.units))

    @property
    def size(self) -> int:
        return UNIT * sum(self.units)

    def row_bytes(self, n_layer: int) -> int:
        return n_layer + n_layer % 2 + int(self.widths.sum()) // 8

    def pack(self, mags: Bytes, levels: Ints) -> Bytes:
        """Packs magnitudes [..., n_layer] and levels [..., r] into code rows [..., row_bytes]."""
        parts = [mags.astype(np.uint8)]
        if mags.shape[-1] % 2:
            parts.append(np.zeros_like(parts[0][..., :1]))
        for width, segment in zip(WIDTHS, self._segments(levels), strict=True):
            rest = width
            for bits in PLANES[width]:
                rest -= bits
                plane = segment >> rest & (1 << bits) - 1
                string = plane[..., None] >> np.arange(bits) & 1
                string = string.reshape(*plane.shape[:-1], -1).astype(np.uint8)
                parts.append(np.packbits(string, axis=-1, bitorder="little"))
        return np.concatenate(parts, axis=-1)

    def unpack(self, rows: Bytes, n_layer: int) -> tuple[Bytes, Ints]:
        """Returns the magnitudes [..., n_layer] and levels [..., r] of code rows."""
        first = n_layer + n_layer % 2
        levels = []
        for width, units in zip(WIDTHS, self.units, strict=True):
            segment = np.zeros((*rows.shape[:-1], UNIT * units), dtype=np.int64)
            for bits in PLANES[width]:
                last = first + UNIT // 8 * units * bits
                string = np.unpackbits(rows[..., first:last], axis=-1, bitorder="little").astype(np.int64)
                plane = string.reshape(*rows.shape[:-1], UNIT * units, bits) @ (1 << np.arange(bits))
                segment, first = segment << bits | plane, last
            levels.append(segment)
        return rows[..., :n_layer], np.concatenate(levels, axis=-1)

    def _segments(self, levels: Ints) -> list[Ints]:
        return np.split(levels.astype(np.int64), np.cumsum(UNIT * np.array(self.units))[:-1], axis=-1)


class Code(NamedTuple):
    """The code of one KV head."""

    rows: Bytes  # [n, row_bytes]
    mags: Bytes  # [n, n_layer]
    levels: Ints  # [n, r]
    projections: Array  # [n, r]: before rounding to levels
    distance: Array  # [n]


class Codes(NamedTuple):
    """The codes of all KV heads."""

    rows: Bytes  # [n, bytes of a token's row]: the heads' code rows, one after the other
    distance: Array  # [n, n_head_kv]
    heads: list[Code]


@dataclass(frozen=True)
class Head:
    """The codec of K, or of V, for one KV head of a group."""

    layout: Layout
    mag: Array  # [n_layer, 2]: log_min and log_step of each layer
    weight: Array  # [n_layer*d]
    gain: Array  # [r]
    decoder: Array  # [n_layer*d, r], numbers of float16

    @property
    def n_layer(self) -> int:
        return len(self.mag)

    @property
    def head_size(self) -> int:
        return len(self.weight) // self.n_layer

    @property
    def row_bytes(self) -> int:
        return self.layout.row_bytes(self.n_layer)

    def unpack(self, rows: Bytes) -> tuple[Bytes, Ints]:
        """The magnitudes [n, n_layer] and levels [n, r] of code rows."""
        return self.layout.unpack(rows, self.n_layer)

    def project(self, units: Sequence[Array]) -> Array:
        """The coefficients of the layers' unit vectors, [n, d] each, in steps."""
        y = self.weight * np.concatenate(units, axis=-1)
        z: Array = self.gain * (y @ self.decoder)
        return z

    def quantize(self, z: Array) -> Ints:
        """The levels of each code at the scale that loses least."""
        levels = np.stack([self.levels_at(z, scale) for scale in SCALES])
        best = self.losses(z)[..., None, :].argmin(axis=-1)
        found: Ints = np.take_along_axis(levels, best[None], axis=0)[0]
        return found

    def levels_at(self, z: Array, scale: float) -> Ints:
        top = 2.0**self.layout.widths - 1
        return np.clip(round_half_away(z / scale + top / 2), 0, top).astype(np.int64)

    def losses(self, z: Array) -> Array:
        """What each of the scales loses, [n, scale]."""
        half = (2.0**self.layout.widths - 1) / 2
        return np.stack(
            [
                ((z - scale * (self.levels_at(z, scale) - half)) ** 2 / self.gain).sum(axis=-1)
                for scale in SCALES
            ],
            axis=-1,
        )

    def decode(self, levels: Ints, side: int) -> Array:
        """û of one layer, [n, d]."""
        coefficients = levels - (2.0**self.layout.widths - 1) / 2
        own = slice(side * self.head_size, (side + 1) * self.head_size)
        u_hat: Array = coefficients @ self.decoder[own].T
        return u_hat

    def mag_byte(self, m: Array, side: int) -> Bytes:
        log_min, log_step = self.mag[side]
        with np.errstate(divide="ignore"):
            q = np.clip(round_half_away((np.log(m) - log_min) / log_step) + 1, 1, 255)
        return np.where(m > 0, q, 0).astype(np.uint8)

    def mag_value(self, q: Bytes, side: int) -> Array:
        log_min, log_step = self.mag[side]
        return np.where(q > 0, np.exp(log_min + (q.astype(np.float64) - 1) * log_step), 0)

    def encode(self, xs: Sequence[Array]) -> Code:
        """Encodes the layers' vectors, each [n, d]. K must be at its position relative to its base."""
        z = self.project([unit(x) for x in xs])
        levels = self.quantize(z)
        mags, errors = zip(*(self._magnitude(x, levels, side) for side, x in enumerate(xs)), strict=True)
        rows = self.layout.pack(np.stack(mags, axis=-1), levels)
        return Code(rows, rows[..., : len(xs)], levels, z, np.clip(sum(errors) / len(xs), 0, 1))

    def _magnitude(self, x: Array, levels: Ints, side: int) -> tuple[Bytes, Array]:
        x = np.asarray(x, dtype=np.float64)
        decoded = self.decode(levels, side)
        weight = self.weight.reshape(self.n_layer, -1)[side]
        square = (weight * decoded**2).sum(-1)
        mag = np.sqrt((weight * x**2).sum(-1) / np.where(square > 0, square, np.inf))
        mags = self.mag_byte(np.minimum(mag, F32_MAX), side)
        error = ((x - self.mag_value(mags, side)[..., None] * decoded) ** 2).sum(-1)
        length = (x**2).sum(-1)
        return mags, np.where(length > 0, error / np.where(length > 0, length, 1), 0)

    def restore(self, rows: Bytes, side: int) -> Array:
        """x̂ of one layer, [n, d]."""
        mags, levels = self.unpack(rows)
        return self.mag_value(mags[..., side], side)[..., None] * self.decode(levels, side)


@dataclass(frozen=True)
class Part:
    """The codec of K, or of V, for all KV heads of a group, which may have layouts of their own."""

    heads: tuple[Head, ...]

    @property
    def n_layer(self) -> int:
        return self.heads[0].n_layer

    @property
    def row_bytes(self) -> int:
        """The bytes of a token's row."""
        return sum(head.row_bytes for head in self.heads)

    @property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """The units of each KV head's layout."""
        return tuple(head.layout.units for head in self.heads)

    def changed(self, change: Callable[[Head], Head]) -> Part:
        """The part with each head's codec changed."""
        return Part(tuple(map(change, self.heads)))

    def split(self, rows: Bytes) -> list[Bytes]:
        """Each head's code rows, of tokens' rows [n, row_bytes]."""
        ends = np.cumsum([head.row_bytes for head in self.heads])
        return np.split(rows, ends[:-1], axis=-1)

    def encode(self, xs: Sequence[Array]) -> Codes:
        """Encodes the layers' vectors, each [n, n_head_kv, d]."""
        codes = [head.encode([x[:, i] for x in xs]) for i, head in enumerate(self.heads)]
        rows = np.concatenate([code.rows for code in codes], axis=-1)
        return Codes(rows, np.stack([code.distance for code in codes], axis=-1), codes)

    def restore(self, rows: Bytes, side: int) -> Array:
        """x̂ of one layer, [n, n_head_kv, d]."""
        heads = zip(self.heads, self.split(rows), strict=True)
        return np.stack([head.restore(own, side) for head, own in heads], axis=1)

    def stacked(self, name: str) -> Array:
        """An array that all heads have, [n_head_kv, ...]."""
        return np.stack([getattr(head, name) for head in self.heads])


@dataclass(frozen=True)
class Codec:
    """The codec of a group."""

    k: Part
    v: Part
    rope: str = "none"
    freq: Array = field(default_factory=lambda: np.zeros(0))  # [n_rot/2], radians per position

    @property
    def n_head_kv(self) -> int:
        return len(self.k.heads)

    @property
    def n_layer(self) -> int:
        return self.k.n_layer

    def turn(self, k: Array, positions: npt.ArrayLike) -> Array:
        """RoPE of rows [n, n_head_kv, d] by positions [n]."""
        k = np.asarray(k, dtype=np.float64)
        if self.rope == "none":
            return k
        angle = np.asarray(positions, dtype=np.float64)[:, None, None] * self.freq
        n = len(self.freq)
        pairs = np.arange(2 * n).reshape((n, 2) if self.rope == "neighbours" else (2, n))
        first, second = pairs.T if self.rope == "neighbours" else pairs
        z = (k[..., first] + 1j * k[..., second]) * np.exp(1j * angle)
        turned: Array = k.copy()
        turned[..., first], turned[..., second] = z.real, z.imag
        return turned

    def encode_k(self, ks: Sequence[Array], bases: npt.ArrayLike) -> Codes:
        """K of the layers after RoPE, coded relative to the bases [n]."""
        back = -np.asarray(bases)
        return self.k.encode([self.turn(k, back) for k in ks])

    def encode_v(self, vs: Sequence[Array]) -> Codes:
        return self.v.encode(vs)

    def restore_k(self, rows: Bytes, side: int, bases: npt.ArrayLike) -> Array:
        """One layer's K at its full position, [n, n_head_kv, d]."""
        return self.turn(self.k.restore(rows, side), bases)

    def restore_v(self, rows: Bytes, side: int) -> Array:
        return self.v.restore(rows, side)

    def to_bytes(self) -> bytes:
        """The codec as llama-minicache.h takes it, without the heads' layouts."""
        parts = (self.k, self.v)
        # [n_head_kv][2*n_layer][2]: |K| of each layer, then |V|
        words = [self.freq, np.concatenate([part.stacked("mag") for part in parts], axis=1)]
        for part in parts:
            words += [part.stacked("weight"), *(head.gain for head in part.heads)]
        halves = [head.decoder for part in parts for head in part.heads]
        return b"".join(
            [np.ascontiguousarray(x, dtype=np.float32).tobytes() for x in words]
            + [np.ascontiguousarray(x, dtype=np.float16).tobytes() for x in halves]
        )

    @property
    def n_bytes(self) -> int:
        """The bytes of the codec in memory, where the layouts of each head's K and V are in front, 16 bytes each."""
        return 2 * 16 * self.n_head_kv + len(self.to_bytes())


def attention(
    q: Array,  # [n_q, n_head, d_k]
    rows_k: Bytes,  # [n_kv, bytes of a token's row]
    rows_v: Bytes,
    codec: Codec,
    side: int,
    *,
    bases: npt.ArrayLike,  # [n_kv]
    mask: Array | None = None,  # [n_q, n_kv]
    scale: float | None = None,
    sinks: Array | None = None,
    softcap: float = 0.0,
    max_bias: float = 0.0,
    exact: Ints | None = None,  # cells that take exact_k and exact_v
    exact_k: Array | None = None,  # [n, n_head_kv, d]
    exact_v: Array | None = None,
) -> Array:
    """Attention of one layer over coded and exact entries: every entry is restored, then attended to."""
    keys, values = codec.restore_k(rows_k, side, bases), codec.restore_v(rows_v, side)
    if exact is not None:
        keys[exact], values[exact] = exact_k, exact_v
    bias = np.zeros((len(q), len(keys))) if mask is None else mask.astype(np.float16).astype(np.float64)
    return attend(q, keys, values, bias, scale, sinks, softcap, max_bias)


def unit(x: Array) -> Array:
    """x/|x| along the last axis, zeros for a zero vector."""
    x = np.asarray(x, dtype=np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    u: Array = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    return u


def round_half_away(x: Array) -> Array:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def random_codec(
    rng: np.random.Generator,
    layouts_k: Sequence[Layout],
    layouts_v: Sequence[Layout],
    d_k: int,
    d_v: int,
    rope: str = "none",
    n_rot: int = 0,
    rope_base: float = 10000.0,
    n_layer: int = 2,
) -> Codec:
    """Makes a codec with orthonormal directions and steps that suit unit vectors of any direction.

    The layouts are those of the KV heads.
    """
    half = n_rot // 2
    freq = (rope_base ** (-np.arange(half) / max(half, 1))).astype(np.float32).astype(np.float64)
    k, v = (
        Part(tuple(_random_head(rng, layout, d, n_layer) for layout in layouts))
        for layouts, d in ((layouts_k, d_k), (layouts_v, d_v))
    )
    return Codec(k, v, rope, freq)


def _random_head(rng: np.random.Generator, layout: Layout, d: int, n_layer: int) -> Head:
    width = layout.widths.astype(np.float64)
    # the numbers of unit vectors are about 1/√d large; the levels cover four deviations
    step = 8 / np.sqrt(d) / 2**width
    full = _orthonormal(rng, n_layer * d, max(layout.size, n_layer * d))
    # orthonormal after weighting by √w: with as many coefficients as numbers only rounding is lost
    weight = rng.uniform(0.5, 2, n_layer * d).astype(np.float32).astype(np.float64)
    decoder = full[:, : layout.size] * step / np.sqrt(weight)[:, None]
    decoder = decoder.astype(np.float16).astype(np.float64)
    gain = (1 / step**2).astype(np.float32).astype(np.float64)
    log_min, log_max = np.log(0.1), np.log(100)
    mag = np.empty((n_layer, 2))
    mag[:, 0] = log_min
    mag[:, 1] = (log_max - log_min) / 254
    return Head(layout, mag.astype(np.float32).astype(np.float64), weight, gain, decoder)


def _orthonormal(rng: np.random.Generator, rows: int, columns: int) -> Array:
    """As many orthonormal columns as the number of rows allows."""
    n = max(rows, columns)
    matrix, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return matrix[:rows, :columns]

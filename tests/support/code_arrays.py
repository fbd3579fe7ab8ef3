"""Codecs and vectors for the code kernels, and the comparison of their codes with the oracle's."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import oracle.code as expected
from minicache_cpp import kernels
from oracle.code import Layout
from support.arrays import Floats, normal

# The kernels add up codes and entries in float32, with angles that are accurate to 1e-5. A wrong level, base or
# magnitude gives errors far above this bound.
BOUND = 1e-9

# the layouts of KV heads, of K and of V; if there are more heads, the layouts are repeated
HeadLayouts = tuple[Sequence[Layout], Sequence[Layout]]
EMPTY = Layout((0,) * 7)
MIXED: HeadLayouts = (
    [Layout((1, 0, 1, 1, 1, 0, 1)), Layout((0, 1, 0, 1, 0, 2, 0))],
    [Layout((0, 1, 0, 2, 0, 1, 0)), Layout((1, 0, 1, 0, 1, 1, 1))],
)
# of four KV heads of two layers, 64 numbers each
_WIDE, _NARROW, _LONGEST = (
    Layout(units) for units in ((2, 0, 1, 0, 0, 1, 0), (0, 0, 0, 1, 1, 1, 0), (1, 1, 1, 1, 2, 1, 1))
)
OF_FOUR_HEADS: dict[str, HeadLayouts] = {
    "all alike": ([_WIDE], [_NARROW]),
    "all different": ([_WIDE, _NARROW, _LONGEST, EMPTY], [_NARROW, EMPTY, _WIDE, _LONGEST]),
    "two alike": ([_NARROW, _WIDE, _WIDE, _NARROW], [_WIDE, _WIDE, _NARROW, _NARROW]),
    "as long, other widths": ([Layout((2, 0, 0, 1, 0, 0, 0)), Layout((0, 3, 0, 0, 0, 0, 0))], [_WIDE]),
    "the first one empty": ([EMPTY, _WIDE, _WIDE, _NARROW], [EMPTY, _NARROW, _NARROW, _NARROW]),
    "the last one longest": ([_NARROW, _NARROW, EMPTY, _LONGEST], [_NARROW, _WIDE, _NARROW, _LONGEST]),
    "no code of K": ([EMPTY], [_WIDE, _NARROW]),
}


def codecs(
    seed: int,
    layouts: HeadLayouts = MIXED,
    n_head_kv: int = 2,
    d_k: int = 64,
    d_v: int = 64,
    rope: str = "halves",
    n_rot: int = 64,
    n_layer: int = 2,
) -> tuple[expected.Codec, kernels.Codec]:
    """The same codec for the oracle and for the kernels."""
    n_rot = 0 if rope == "none" else n_rot
    oracle = expected.random_codec(
        np.random.default_rng(seed),
        *(of_heads(own, n_head_kv) for own in layouts),
        d_k,
        d_v,
        rope=rope,
        n_rot=n_rot,
        n_layer=n_layer,
    )
    units = oracle.k.units, oracle.v.units
    return oracle, kernels.Codec(oracle.to_bytes(), *units, d_k, d_v, n_head_kv, rope, n_rot, n_layer)


def of_heads(layouts: Sequence[Layout], n_head_kv: int) -> list[Layout]:
    """A layout for each KV head, repeated where there are more heads than layouts."""
    return [layouts[head % len(layouts)] for head in range(n_head_kv)]


def mag_columns(part: expected.Part, side: int) -> list[int]:
    """Where the magnitudes of a layer are in a token's row, one for each KV head."""
    return [sum(head.row_bytes for head in part.heads[:i]) + side for i in range(len(part.heads))]


def assert_levels(head: expected.Head, rows: npt.NDArray[np.uint8], z: npt.NDArray[np.floating]) -> None:
    """Each code has a scale that loses least, or as little up to float32 rounding, and each level is the nearest one at
    that scale, or one of two that are equally near up to that rounding.
    """
    top = 2.0**head.layout.widths - 1
    got = head.unpack(rows)[1]
    losses = head.losses(z)
    fits = np.zeros(losses.shape, bool)
    for i, scale in enumerate(expected.SCALES):
        away = np.abs(got - np.clip(z / scale + top / 2, 0, top)).max(axis=-1, initial=0)
        fits[..., i] = away <= 0.5 + 2e-3
    least = losses.min(axis=-1, keepdims=True)
    assert (fits & (losses <= least * (1 + 1e-4))).any(axis=-1).all()


def assert_coded(
    oracle: expected.Codec, codec: kernels.Codec, x: dict[str, Floats], bases: npt.NDArray[np.integer]
) -> kernels.Codes:
    with np.errstate(over="ignore"):
        want = {
            "k": oracle.encode_k(list(x["k"]), bases),
            "v": oracle.encode_v(list(x["v"])),
        }
    for threads, reference in ((1, True), (1, False), (3, False)):
        got = kernels.encode(**x, codec=codec, bases=bases, n_threads=threads, reference=reference)
        for part, rows, distance, codes in (
            (oracle.k, got.k, got.distance_k, want["k"]),
            (oracle.v, got.v, got.distance_v, want["v"]),
        ):
            assert rows.shape == codes.rows.shape
            assert distance.shape == codes.distance.shape
            for i, (head, own) in enumerate(zip(part.heads, part.split(rows), strict=True)):
                assert_head(head, own, distance[:, i], codes.heads[i])
    return got


def assert_head(
    head: expected.Head, rows: npt.NDArray[np.uint8], distance: Floats, code: expected.Code
) -> None:
    """The code rows of one KV head are the oracle's, up to rounding."""
    assert_levels(head, rows, code.projections)
    mags, levels = head.unpack(rows)
    # at a tie the kernel may choose the other level, and then magnitude and distance differ too
    same = (levels == code.levels).all(-1)
    assert same.mean() > 0.75
    away = np.abs(mags.astype(int) - code.mags)
    assert away[same].max(initial=0) <= 1
    assert (away == 0)[same].mean() > 0.99
    alike = same & (away == 0).all(-1)
    np.testing.assert_allclose(distance[alike], code.distance[alike], atol=1e-5)
    assert np.isfinite(distance).all() and distance.min() >= 0 and distance.max() <= 1


def vectors(seed: int, n_tokens: int, codec: kernels.Codec) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    sizes = {"k": codec.head_size_k, "v": codec.head_size_v}
    return {name: normal(rng, codec.n_layer, n_tokens, codec.n_head_kv, size) for name, size in sizes.items()}

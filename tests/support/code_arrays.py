"""Codecs and vectors for the code kernels, and the comparison of their codes with the oracle's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import oracle.code as expected
from minicache_cpp import kernels
from oracle.code import Layout
from support.arrays import Floats, normal

# The kernels add up codes and entries in float32, with angles that are accurate to 1e-5. A wrong level, base or
# magnitude gives errors far above this bound.
BOUND = 1e-9
MIXED = Layout((1, 0, 1, 1, 1, 0, 1)), Layout((0, 1, 0, 2, 0, 1, 0))


def codecs(
    seed: int,
    layouts: tuple[Layout, Layout] = MIXED,
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
        np.random.default_rng(seed), n_head_kv, *layouts, d_k, d_v, rope=rope, n_rot=n_rot, n_layer=n_layer
    )
    units = (layout.units for layout in layouts)
    return oracle, kernels.Codec(oracle.to_bytes(), *units, d_k, d_v, n_head_kv, rope, n_rot, n_layer)


def assert_levels(part: expected.Part, rows: npt.NDArray[np.uint8], z: npt.NDArray[np.floating]) -> None:
    """Each code has a scale that loses least, or as little up to float32 rounding, and each level is the nearest one at
    that scale, or one of two that are equally near up to that rounding.
    """
    top = 2.0**part.layout.widths - 1
    got = part.layout.unpack(rows, part.n_layer)[1]
    losses = part.losses(z)
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
        for part, rows, distance, code in (
            (oracle.k, got.k, got.distance_k, want["k"]),
            (oracle.v, got.v, got.distance_v, want["v"]),
        ):
            assert_levels(part, rows, code.projections)
            # at a tie the kernel may choose the other level, and then magnitude and distance differ too
            same = (part.layout.unpack(rows, part.n_layer)[1] == code.levels).all(-1)
            assert same.mean() > 0.75
            mags = part.layout.unpack(rows, part.n_layer)[0].astype(int)
            assert np.abs(mags - code.mags)[same].max(initial=0) <= 1
            assert (mags == code.mags)[same].mean() > 0.99
            alike = same & (mags == code.mags).all(-1)
            np.testing.assert_allclose(distance[alike], code.distance[alike], atol=1e-5)
            assert np.isfinite(distance).all() and distance.min() >= 0 and distance.max() <= 1
    return got


def vectors(seed: int, n_tokens: int, codec: kernels.Codec) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    sizes = {"k": codec.head_size_k, "v": codec.head_size_v}
    return {name: normal(rng, codec.n_layer, n_tokens, codec.n_head_kv, size) for name, size in sizes.items()}

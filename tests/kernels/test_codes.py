"""The native encode and decode of shared codes on arrays, against the NumPy oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

import oracle.code as expected
from minicache_cpp import MiniCacheError, kernels
from oracle.code import Layout
from support.code_arrays import BOUND, MIXED, OF_FOUR_HEADS, assert_coded, codecs, mag_columns, vectors
from support.contexts import nmse

Floats = npt.NDArray[np.float32]


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("units", [1, 2, 3])
@pytest.mark.parametrize("segment", range(7))
def test_every_width(segment: int, units: int) -> None:
    alone = Layout(tuple(units if i == segment else 0 for i in range(7)))
    among = Layout(tuple(units if i == segment else 1 for i in range(7)))
    oracle, codec = codecs(segment, ([alone, among], [among, alone]))
    x = vectors(units, 9, codec)
    codes = assert_coded(oracle, codec, x, np.arange(9) // 4 * 64)
    assert codes.k.shape == codes.v.shape == (9, alone.row_bytes(2) + among.row_bytes(2))


@pytest.mark.parametrize("n_layer", [2, 3])
@pytest.mark.parametrize("heads", OF_FOUR_HEADS)
def test_heads_have_layouts_of_their_own(heads: str, n_layer: int) -> None:
    oracle, codec = codecs(n_layer, OF_FOUR_HEADS[heads], n_head_kv=4, n_layer=n_layer)
    bases = np.arange(9) // 4 * 64
    codes = assert_coded(oracle, codec, vectors(4, 9, codec), bases)
    for side in range(n_layer):
        k, v = kernels.decode(codes.k, codes.v, codec, side, bases=bases)
        for got, want, part in (
            (k, oracle.restore_k(codes.k, side, bases), oracle.k),
            (v, oracle.restore_v(codes.v, side), oracle.v),
        ):
            for i, head in enumerate(part.heads):
                if head.layout.size:
                    assert nmse(got[:, i], want[:, i]) <= BOUND
                else:
                    assert not got[:, i].any()


@pytest.mark.parametrize("rope", kernels.ROPES)
@pytest.mark.parametrize(("d_k", "d_v", "n_rot"), [(64, 64, 64), (80, 32, 20), (128, 128, 64), (32, 96, 2)])
def test_rope_and_head_sizes(d_k: int, d_v: int, n_rot: int, rope: str) -> None:
    oracle, codec = codecs(d_k, d_k=d_k, d_v=d_v, rope=rope, n_rot=n_rot)
    bases = np.array([0, 64, 64, -128, 100_000, 7, 1_000_000])
    codes = assert_coded(oracle, codec, vectors(1, 7, codec), bases)
    for side in (0, 1):
        k, v = kernels.decode(codes.k, codes.v, codec, side, bases=bases)
        assert nmse(k, oracle.restore_k(codes.k, side, bases)) <= BOUND
        assert nmse(v, oracle.restore_v(codes.v, side)) <= BOUND


@pytest.mark.parametrize("n_layer", [1, 2, 3, 4])
def test_groups_of_any_number_of_layers(n_layer: int) -> None:
    oracle, codec = codecs(n_layer, d_k=80, d_v=32, n_rot=40, n_layer=n_layer)
    bases = np.arange(7) // 2 * 64
    codes = assert_coded(oracle, codec, vectors(n_layer, 7, codec), bases)
    mag_bytes = n_layer + n_layer % 2
    assert codes.k.shape[1] == sum(mag_bytes + sum(layout.widths) // 8 for layout in MIXED[0])
    for part, rows in ((oracle.k, codes.k), (oracle.v, codes.v)):
        assert not any(own[:, n_layer:mag_bytes].any() for own in part.split(rows))
    restored = [kernels.decode(codes.k, codes.v, codec, side, bases=bases) for side in range(n_layer)]
    for side, (k, v) in enumerate(restored):
        assert nmse(k, oracle.restore_k(codes.k, side, bases)) <= BOUND
        assert nmse(v, oracle.restore_v(codes.v, side)) <= BOUND
    assert all(not np.array_equal(restored[0][0], k) for k, _ in restored[1:])
    for side in (-1, n_layer):
        with pytest.raises(MiniCacheError, match=f"side must be from 0 to {n_layer - 1}"):
            kernels.decode(codes.k, codes.v, codec, side)


def test_a_group_has_four_layers_at_most() -> None:
    _, codec = codecs(1)
    for n_layer in (0, 5):
        with pytest.raises(MiniCacheError, match="n_layer"):
            kernels.encode(*(np.ones((n_layer, 1, 2, 64)) for _ in "kv"), replace(codec, n_layer=n_layer))


@pytest.mark.parametrize(("d", "n_layer"), [(32, 2), (64, 2), (80, 2), (64, 1), (64, 3), (32, 4)])
def test_a_complete_code_restores_what_went_in(d: int, n_layer: int) -> None:
    complete = Layout((n_layer * d // 16, 0, 0, 0, 0, 0, 0))
    oracle, codec = codecs(d, ([complete], [complete]), d_k=d, d_v=d, n_rot=d, n_layer=n_layer)
    x, bases = vectors(2, 20, codec), np.arange(20) * 64
    codes = assert_coded(oracle, codec, x, bases)
    for side in range(n_layer):
        k, v = kernels.decode(codes.k, codes.v, codec, side, bases=bases)
        # 8 bits for each coefficient; the steps of magnitudes are 2.8 %
        assert nmse(k, x["k"][side]) < 5e-4
        assert nmse(v, x["v"][side]) < 5e-4
    assert codes.distance_k.mean() < 5e-4 and codes.distance_v.mean() < 5e-4


def test_rare_vectors_are_not_cut_off() -> None:
    """Where a coefficient is beyond the largest level, all steps are larger, and the direction stays."""
    complete = Layout((4, 0, 0, 0, 0, 0, 0))
    oracle, codec = codecs(3, ([complete], [complete]), rope="none", n_layer=1)
    x = {}
    for name, part in (("k", oracle.k), ("v", oracle.v)):
        # one token for each coefficient, which is much larger than a second one
        columns = np.moveaxis(part.stacked("decoder"), 2, 0)
        x[name] = (columns + 0.4 * np.roll(columns, 1, axis=0))[None].astype(np.float32)
    for i, head in enumerate(oracle.k.heads):
        beyond = np.abs(head.project([expected.unit(x["k"][0, :, i])])).max(axis=-1)
        assert beyond.min() > 1.5 * 127.5
    codes = assert_coded(oracle, codec, x, np.zeros(64, int))
    for restored, given in zip(
        kernels.decode(codes.k, codes.v, codec, 0), (x["k"][0], x["v"][0]), strict=True
    ):
        cosine = (expected.unit(restored) * expected.unit(given)).sum(axis=-1)
        assert cosine.min() > 0.999  # 0.98 where the levels are cut off


def test_k_is_coded_relative_to_its_base() -> None:
    """Tokens that differ only by the turn of their bases have the same code."""
    oracle, codec = codecs(5)
    both = normal(np.random.default_rng(5), 2, 1, 2, 64)
    bases = np.arange(0, 6400, 64)
    x = vectors(5, 1, codec)
    turned = np.stack([oracle.turn(np.repeat(k, 100, axis=0), bases) for k in both])
    codes = kernels.encode(turned, np.repeat(x["v"], 100, axis=1), codec, bases=bases)
    assert (codes.k == codes.k[0]).mean() > 0.999  # rounding may change a level here and there
    assert (codes.v == codes.v[0]).all()


def layers(factors: list[float]) -> Floats:
    """An array with one factor for each layer."""
    return np.array(factors, np.float32)[:, None, None, None]


def edges(codec: kernels.Codec) -> dict[str, dict[str, Floats]]:
    x = vectors(6, 5, codec)
    zero = {name: np.zeros_like(value) for name, value in x.items()}
    b_only = {name: value * layers([0, 1]) for name, value in x.items()}
    one = {name: np.zeros_like(value) for name, value in x.items()}
    for value in one.values():
        value[..., 3] = -7
    largest = np.float32(3.4028235e38)
    return {
        "zero": zero,
        "negative zero": {name: -value for name, value in zero.items()},
        "one layer zero": b_only,
        "one number each": one,
        "denormal": {name: value * np.float32(1e-41) for name, value in x.items()},
        "huge": {name: value * np.float32(1e30) for name, value in x.items()},
        "huge and tiny": {name: value * layers([1e36, 1e-36]) for name, value in x.items()},
        "largest": {name: np.copysign(largest, value) for name, value in x.items()},
    }


@pytest.mark.parametrize("case", edges(codecs(0)[1]))
def test_edges(case: str) -> None:
    oracle, codec = codecs(7)
    x = edges(codec)[case]
    codes = assert_coded(oracle, codec, x, np.arange(5) * 64)
    for side in (0, 1):
        k, v = kernels.decode(codes.k, codes.v, codec, side)
        assert np.isfinite(k).all() and np.isfinite(v).all()
        if not x["k"][side].any():
            assert not k.any() and not v.any() and not codes.k[:, mag_columns(oracle.k, side)].any()
    if case == "zero":
        assert not codes.distance_k.any() and not codes.distance_v.any()


def test_number_of_tokens_and_threads_do_not_matter() -> None:
    oracle, codec = codecs(8, n_head_kv=3)
    x, bases = vectors(8, 67, codec), np.arange(67) // 10 * 64
    whole = assert_coded(oracle, codec, x, bases)
    for n in (1, 7, 8, 9, 33):
        for threads in (1, 2, 4):
            part = {name: value[:, :n] for name, value in x.items()}
            some = kernels.encode(**part, codec=codec, bases=bases[:n], n_threads=threads)
            for got, want in zip(some, whole, strict=True):
                assert np.array_equal(got, want[:n])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_units_may_be_small_numbers_of_numpy(dtype: type) -> None:
    """A row has more bytes than such a number can count."""
    longest = [Layout((32, 0, 0, 0, 0, 0, 0))]
    codec = codecs(5, (longest, longest), d_k=256, d_v=256)[1]
    small = replace(codec, units_k=np.array(codec.units_k, dtype), units_v=np.array(codec.units_v, dtype))
    x, bases = vectors(5, 9, codec), np.arange(9)
    codes = kernels.encode(**x, codec=small, bases=bases)
    assert codes.k.shape == codes.v.shape == (9, 2 * (2 + 32 * 16))
    for got, want in zip(codes, kernels.encode(**x, codec=codec, bases=bases), strict=True):
        assert np.array_equal(got, want)
    with pytest.raises(MiniCacheError, match="code_k"):
        kernels.decode(codes.k[:, :4], codes.v, small, 0, bases=bases)


def test_bad_codecs_are_refused() -> None:
    codec = codecs(16)[1]
    x = vectors(16, 2, codec)
    words = np.frombuffer(codec.data, np.uint8).copy()
    infinite = words.copy()
    infinite[4:8] = np.frombuffer(np.float32(np.inf).tobytes(), np.uint8)
    flat = words.copy()
    flat[4 * (32 + 1) : 4 * (32 + 2)] = 0  # the step of |K_a|, after 32 frequencies
    undecodable = words.copy()
    undecodable[-2:] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    for bad, named in (
        (replace(codec, data=codec.data[:-2]), "bytes"),
        (replace(codec, data=infinite.tobytes()), "finite"),
        (replace(codec, data=flat.tobytes()), "step"),
        (replace(codec, data=undecodable.tobytes()), "finite"),
        (replace(codec, rope="sideways"), "rope"),
        (replace(codec, n_rot=66), "n_rot"),
        (replace(codec, n_rot=3), "n_rot"),
        (replace(codec, units_k=(1, 2)), "units_k"),
        (replace(codec, units_k=codec.units_k[0]), "units_k"),
        (replace(codec, units_v=codec.units_v[:1]), "units_v"),
        (replace(codec, units_v=(*codec.units_v, (1,) * 7)), "units_v"),
        (replace(codec, units_k=(codec.units_k[0], (1, 2))), "units_k"),
        (replace(codec, units_k=(codec.units_k[0], (-1,) * 7)), "units_k"),
        (replace(codec, units_v=(codec.units_v[0], (0.5,) * 7)), "units_v"),
        (replace(codec, units_v=(codec.units_v[0], (256,) + (0,) * 6)), "units_v"),
        (replace(codec, units_v=(codec.units_v[0], (2**32,) + (0,) * 6)), "units_v"),
        (replace(codec, units_k=codec.units_k[:1] * 2), "bytes"),
    ):
        with pytest.raises(ValueError, match=named):
            kernels.encode(**x, codec=bad)
    with pytest.raises(ValueError, match=r"^k is"):
        kernels.encode(**x | {"k": x["k"][:1]}, codec=codec)
    with pytest.raises(ValueError, match=r"^v is"):
        kernels.encode(**x | {"v": x["v"][:, :1]}, codec=codec)
    with pytest.raises(ValueError, match="NaN"):
        kernels.encode(**x | {"v": np.full_like(x["v"], np.nan)}, codec=codec)

"""The native kernels of shared codes on arrays against the NumPy oracle: widths, edges, bases, attention's options."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import oracle.code as expected
from minicache_cpp import MiniCacheError, kernels
from oracle.arithmetic import alibi_slopes
from oracle.code import Layout
from oracle.quant import round_trip
from support.contexts import nmse

Floats = npt.NDArray[np.float32]

# float32 sums over the code and over the entries, and angles that are good to 1e-5; a wrong level, base or magnitude is
# far above
BOUND = 1e-9

MIXED = Layout((1, 0, 1, 1, 1, 0, 1)), Layout((0, 1, 0, 2, 0, 1, 0))


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


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


#
# encode and decode
#


def assert_levels(part: expected.Part, rows: npt.NDArray[np.uint8], z: npt.NDArray[np.floating]) -> None:
    """Each level is the nearest one, up to float32's rounding where two are as near."""
    top = 2.0**part.layout.widths - 1
    got = part.layout.unpack(rows, part.n_layer)[1]
    assert np.abs(got - np.clip(z + top / 2, 0, top)).max(initial=0) <= 0.5 + 2e-3


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
            # a level at a tie may be the other one, and takes magnitude and distance along
            same = (part.layout.unpack(rows, part.n_layer)[1] == code.levels).all(-1)
            assert same.mean() > 0.9
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


@pytest.mark.parametrize("units", [1, 2, 3])
@pytest.mark.parametrize("segment", range(7))
def test_every_width(segment: int, units: int) -> None:
    alone = Layout(tuple(units if i == segment else 0 for i in range(7)))
    among = Layout(tuple(units if i == segment else 1 for i in range(7)))
    oracle, codec = codecs(segment, (alone, among))
    x = vectors(units, 9, codec)
    codes = assert_coded(oracle, codec, x, np.arange(9) // 4 * 64)
    assert codes.k.shape == (9, 2, alone.row_bytes(2)) and codes.v.shape == (9, 2, among.row_bytes(2))


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
    assert codes.k.shape[2] == mag_bytes + sum(MIXED[0].widths) // 8
    assert not codes.k[..., n_layer:mag_bytes].any() and not codes.v[..., n_layer:mag_bytes].any()
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
    oracle, codec = codecs(d, (complete, complete), d_k=d, d_v=d, n_rot=d, n_layer=n_layer)
    x, bases = vectors(2, 20, codec), np.arange(20) * 64
    codes = assert_coded(oracle, codec, x, bases)
    for side in range(n_layer):
        k, v = kernels.decode(codes.k, codes.v, codec, side, bases=bases)
        # 8 bits a coefficient; the magnitudes' steps are 2.8 %
        assert nmse(k, x["k"][side]) < 5e-4
        assert nmse(v, x["v"][side]) < 5e-4
    assert codes.distance_k.mean() < 5e-4 and codes.distance_v.mean() < 5e-4


def test_k_is_coded_relative_to_its_base() -> None:
    """Tokens that differ by a turn of whole bases have one code."""
    oracle, codec = codecs(5)
    both = normal(np.random.default_rng(5), 2, 1, 2, 64)
    bases = np.arange(0, 6400, 64)
    x = vectors(5, 1, codec)
    turned = np.stack([oracle.turn(np.repeat(k, 100, axis=0), bases) for k in both])
    codes = kernels.encode(turned, np.repeat(x["v"], 100, axis=1), codec, bases=bases)
    assert (codes.k == codes.k[0]).mean() > 0.999  # rounding may decide a level here and there
    assert (codes.v == codes.v[0]).all()


def layers(factors: list[float]) -> Floats:
    """A factor for each layer."""
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
            assert not k.any() and not v.any() and not codes.k[..., side].any()
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


#
# attention
#


def case(
    seed: int,
    layouts: tuple[Layout, Layout] = MIXED,
    n_q: int = 3,
    n_kv: int = 150,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_size: int = 64,
    rope: str = "halves",
    n_rot: int = 64,
    side: int = 1,
    n_layer: int = 2,
) -> tuple[expected.Codec, dict[str, Any]]:
    oracle, codec = codecs(
        seed,
        layouts,
        n_head_kv,
        head_size,
        head_size,
        rope=rope,
        n_rot=min(n_rot, head_size),
        n_layer=n_layer,
    )
    rng = np.random.default_rng(seed)
    rows = []
    for layout in layouts:
        row = rng.integers(0, 256, (n_kv, n_head_kv, layout.row_bytes(n_layer)), dtype=np.uint8)
        row[..., :n_layer] = rng.integers(0, 150, (n_kv, n_head_kv, n_layer))
        rows.append(row)
    mask = np.where(rng.random((n_q, n_kv)) < 0.3, -np.inf, 0).astype(np.float32)
    mask[:, 0] = 0  # every query sees something
    return oracle, {
        "q": normal(rng, n_q, n_head, head_size),
        "code_k": rows[0],
        "code_v": rows[1],
        "codec": codec,
        "side": side,
        "bases": np.arange(n_kv) // 20 * 64,
        "mask": mask,
    }


def assert_attends(oracle: expected.Codec, arguments: dict[str, Any], bound: float = BOUND) -> Floats:
    """Both native kernels against the oracle."""
    flat = dict(arguments)
    rows = flat.pop("code_k"), flat.pop("code_v")
    del flat["codec"]
    exact: dict[int, tuple[Any, Any]] = {}
    if "retained" in flat:
        kept: kernels.Retained = flat.pop("retained")
        pools = (round_trip(np.asarray(x), kept.type) for x in (kept.k, kept.v))
        exact |= {cell: kv for cell, *kv in zip(np.asarray(kept.cells).tolist(), *pools, strict=True)}
    if "current" in flat:
        now: kernels.Current = flat.pop("current")
        exact |= {cell: kv for cell, *kv in zip(np.asarray(now.cells).tolist(), now.k, now.v, strict=True)}
    if exact:
        exact_k, exact_v = (np.stack([kv[i] for kv in exact.values()]) for i in (0, 1))
        flat |= {"exact": np.array(list(exact)), "exact_k": exact_k, "exact_v": exact_v}
    want = expected.attention(flat.pop("q"), *rows, oracle, flat.pop("side"), **flat)
    for threads, reference in ((1, True), (1, False), (2, False)):
        got = kernels.code_attention(**arguments, n_threads=threads, reference=reference)
        assert got.shape == want.shape
        assert np.isfinite(got).all()
        assert nmse(got, want) <= bound, f"reference={reference}, {threads} threads"
    return got


@pytest.mark.parametrize("segment", range(7))
def test_attention_reads_every_width(segment: int) -> None:
    for units in (1, 3):
        alone = Layout(tuple(units if i == segment else 0 for i in range(7)))
        among = Layout(tuple(units if i == segment else 1 for i in range(7)))
        assert_attends(*case(segment, (alone, among)))
        assert_attends(*case(segment, (among, alone), side=0))


@pytest.mark.parametrize(
    ("n_layer", "side"), [(n_layer, side) for n_layer in (1, 2, 3, 4) for side in range(n_layer)]
)
def test_attention_of_every_layer_of_a_group(n_layer: int, side: int) -> None:
    for n_q in (1, 9):
        assert_attends(*case(side, n_q=n_q, n_kv=90, rope="neighbours", n_layer=n_layer, side=side))


@pytest.mark.parametrize("width", [8, 3])
def test_the_longest_codes(width: int) -> None:
    """As many coefficients as four layers' heads of 256 have numbers; no CUDA kernel takes so many."""
    longest = Layout(tuple(64 * (width == bits) for bits in expected.WIDTHS))
    oracle, codec = codecs(1, (longest, longest), 1, 256, 256, n_layer=4)
    assert_coded(oracle, codec, vectors(1, 9, codec), np.arange(9) // 4 * 64)
    for n_q in (1, 9):
        arguments = {"n_q": n_q, "n_kv": 24, "n_head_kv": 1, "head_size": 256, "n_layer": 4, "side": 3}
        assert_attends(*case(1, (longest, longest), **arguments))


@pytest.mark.parametrize("rope", kernels.ROPES)
@pytest.mark.parametrize("head_size", [32, 64, 80, 128])
@pytest.mark.parametrize("gqa", [1, 3, 8])
def test_attention_of_head_sizes_and_groups(gqa: int, head_size: int, rope: str) -> None:
    for n_q, n_rot in ((1, 16), (11, head_size)):
        assert_attends(
            *case(gqa, n_q=n_q, n_kv=90, n_head=2 * gqa, head_size=head_size, rope=rope, n_rot=n_rot)
        )


@pytest.mark.parametrize("n_kv", [1, 2, 31, 64, 65, 257, 700])
@pytest.mark.parametrize("n_q", [1, 2, 33])
def test_attention_of_odd_lengths(n_q: int, n_kv: int) -> None:
    assert_attends(*case(n_kv, n_q=n_q, n_kv=n_kv))


def test_attention_at_any_bases() -> None:
    rng = np.random.default_rng(4)
    oracle, arguments = case(4, n_kv=300)
    cells = np.arange(300)
    for bases in (
        0 * cells,
        cells * 64,
        1_000_000 + cells // 64 * 64,
        -cells // 7 * 64,
        rng.integers(-5000, 5000, 300),
        None,
    ):
        bases_or_zero = 0 * cells if bases is None else bases
        want = assert_attends(oracle, arguments | {"bases": bases_or_zero})
        assert np.array_equal(kernels.code_attention(**arguments | {"bases": bases}, n_threads=2), want)


@pytest.mark.parametrize("softcap", [0.0, 4.0])
@pytest.mark.parametrize("max_bias", [0.0, 8.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("n_head", [4, 6])
def test_attention_options(n_head: int, sinks: bool, max_bias: float, softcap: float) -> None:
    oracle, arguments = case(9, n_head=n_head)
    arguments |= {"softcap": softcap, "max_bias": max_bias}
    if sinks:
        arguments["sinks"] = 2 * normal(np.random.default_rng(n_head), n_head)
    if max_bias:
        hidden = np.isinf(arguments["mask"])
        arguments["mask"] = np.where(hidden, -np.inf, -np.arange(150) / 4).astype(np.float32)
        assert len(set(alibi_slopes(n_head, max_bias))) == n_head
    assert_attends(oracle, arguments)
    assert_attends(oracle, arguments | {"scale": 0.3, "mask": None})


def test_attention_with_everything_at_once() -> None:
    rng = np.random.default_rng(12)
    for n_q, n_kv in ((9, 61), (1, 700)):
        oracle, arguments = case(12, n_q=n_q, n_kv=n_kv, n_head=14)
        cells = np.arange(5, n_kv, 10)
        arguments |= {
            "retained": kernels.Retained(cells, *(normal(rng, len(cells), 2, 64) for _ in "kv"), 10, "q8_0"),
            "current": kernels.Current([6, 0, n_kv - 1], *(normal(rng, 3, 2, 64) for _ in "kv")),
            "sinks": normal(rng, 14),
            "softcap": 9.0,
            "max_bias": 4.0,
        }
        before = assert_attends(oracle, arguments)
        # what the cache holds where tokens are exact does not matter
        for name in ("code_k", "code_v"):
            arguments[name] = arguments[name].copy()
            arguments[name][[*cells, *arguments["current"].cells]] = 255
        assert np.array_equal(kernels.code_attention(**arguments, n_threads=2), before)


def test_attention_follows_a_shift() -> None:
    """Moving all bases, and turning the queries as far, changes nothing."""
    oracle, arguments = case(13)
    before = kernels.code_attention(**arguments)
    moved = arguments | {"bases": arguments["bases"] - 5_000}
    moved["q"] = oracle.turn(arguments["q"], np.full(3, -5_000))
    assert nmse(kernels.code_attention(**moved), before) < BOUND


def test_the_bound_tells_mistakes_apart() -> None:
    oracle, arguments = case(14)
    want = kernels.code_attention(**arguments)
    for wrong in (
        arguments | {"side": 0},
        arguments | {"bases": arguments["bases"] + 1},
        arguments | {"code_k": np.roll(arguments["code_k"], 1, axis=0)},
        arguments | {"code_v": arguments["code_v"] ^ np.uint8(1)},
    ):
        assert nmse(kernels.code_attention(**wrong), want) > 1e3 * BOUND
    assert oracle.n_head_kv == 2


#
# bad input
#


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"code_k": np.zeros((150, 2, 3), np.uint8)}, "code_k"),
        ({"code_v": np.zeros((150, 2, 58), np.float32)}, "code_v"),
        ({"bases": np.zeros(149, int)}, "bases"),
        ({"bases": np.zeros(150)}, "bases"),
        ({"side": 2}, "side"),
        ({"mask": np.zeros((3, 149), np.float32)}, "mask"),
        ({"q": np.zeros((3, 3, 64), np.float32)}, "multiple"),
        ({"q": np.zeros((3, 4, 32), np.float32)}, "head size"),
        (
            {"retained": kernels.Retained([1], np.zeros((1, 2, 64)), np.zeros((1, 2, 64)), 2, "cache")},
            "cache",
        ),
    ],
)
def test_attention_refuses_nonsense(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kernels.code_attention(**case(15)[1] | change)


def test_bad_codecs_are_refused() -> None:
    codec = codecs(16)[1]
    x = vectors(16, 2, codec)
    words = np.frombuffer(codec.data, np.uint8).copy()
    infinite = words.copy()
    infinite[4:8] = np.frombuffer(np.float32(np.inf).tobytes(), np.uint8)
    flat = words.copy()
    flat[4 * (32 + 1) : 4 * (32 + 2)] = 0  # the step of |K_a|, behind 32 frequencies
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
    ):
        with pytest.raises(ValueError, match=named):
            kernels.encode(**x, codec=bad)
    with pytest.raises(ValueError, match=r"^k is"):
        kernels.encode(**x | {"k": x["k"][:1]}, codec=codec)
    with pytest.raises(ValueError, match=r"^v is"):
        kernels.encode(**x | {"v": x["v"][:, :1]}, codec=codec)
    with pytest.raises(ValueError, match="NaN"):
        kernels.encode(**x | {"v": np.full_like(x["v"], np.nan)}, codec=codec)

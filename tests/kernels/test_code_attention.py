"""The native attention over codes on arrays, against the NumPy oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import oracle.code as expected
from minicache_cpp import kernels
from oracle.arithmetic import alibi_slopes
from oracle.code import Layout
from oracle.quant import round_trip
from support.arrays import Floats, normal
from support.code_arrays import (
    BOUND,
    MIXED,
    OF_FOUR_HEADS,
    HeadLayouts,
    assert_coded,
    codecs,
    mag_columns,
    vectors,
)
from support.contexts import nmse


def case(
    seed: int,
    layouts: HeadLayouts = MIXED,
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
    for part in (oracle.k, oracle.v):
        row = rng.integers(0, 256, (n_kv, part.row_bytes), dtype=np.uint8)
        for of_layer in range(n_layer):
            row[:, mag_columns(part, of_layer)] = rng.integers(0, 150, (n_kv, n_head_kv))
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
    """Compares both native kernels with the oracle."""
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
        assert_attends(*case(segment, ([alone, among], [among, alone])))
        assert_attends(*case(segment, ([among], [alone]), side=0))


@pytest.mark.parametrize("n_q", [1, 9, 40])
@pytest.mark.parametrize("heads", OF_FOUR_HEADS)
def test_attention_over_heads_of_layouts_of_their_own(heads: str, n_q: int) -> None:
    for n_head, n_kv in ((4, 700), (12, 90)):
        assert_attends(*case(n_q, OF_FOUR_HEADS[heads], n_q=n_q, n_kv=n_kv, n_head=n_head, n_head_kv=4))


@pytest.mark.parametrize(
    ("n_layer", "side"), [(n_layer, side) for n_layer in (1, 2, 3, 4) for side in range(n_layer)]
)
def test_attention_of_every_layer_of_a_group(n_layer: int, side: int) -> None:
    for n_q in (1, 9):
        assert_attends(*case(side, n_q=n_q, n_kv=90, rope="neighbours", n_layer=n_layer, side=side))


@pytest.mark.parametrize("width", [8, 3])
@pytest.mark.parametrize(("head_size", "n_layer"), [(256, 4), (512, 2)])
def test_the_longest_codes(head_size: int, n_layer: int, width: int) -> None:
    """As many coefficients as the heads of four layers have numbers, at head size 256; no CUDA kernel takes so many."""
    longest = Layout(tuple(64 * (width == bits) for bits in expected.WIDTHS))
    oracle, codec = codecs(1, ([longest], [longest]), 1, head_size, head_size, n_layer=n_layer)
    assert_coded(oracle, codec, vectors(1, 9, codec), np.arange(9) // 4 * 64)
    sizes = {"n_head_kv": 1, "head_size": head_size, "n_layer": n_layer, "side": n_layer - 1}
    for n_q in (1, 9):
        assert_attends(*case(1, ([longest], [longest]), n_q=n_q, n_kv=24, **sizes))


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
        # the rows that the cache holds for exact tokens do not matter
        for name in ("code_k", "code_v"):
            arguments[name] = arguments[name].copy()
            arguments[name][[*cells, *arguments["current"].cells]] = 255
        assert np.array_equal(kernels.code_attention(**arguments, n_threads=2), before)


def test_attention_follows_a_shift() -> None:
    """Moving all bases and turning the queries by as much changes nothing."""
    oracle, arguments = case(13)
    before = kernels.code_attention(**arguments)
    moved = arguments | {"bases": arguments["bases"] - 5_000}
    moved["q"] = oracle.turn(arguments["q"], np.full(3, -5_000))
    assert nmse(kernels.code_attention(**moved), before) < BOUND


def test_the_bound_excludes_mistakes() -> None:
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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"code_k": np.zeros((150, 3), np.uint8)}, "code_k"),
        ({"code_k": np.zeros((150, 2, 45), np.uint8)}, "code_k"),
        ({"code_v": np.zeros((150, 104), np.float32)}, "code_v"),
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

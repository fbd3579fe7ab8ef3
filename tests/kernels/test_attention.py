"""The native attention over merged and plain rows on arrays, against the NumPy oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import oracle.arithmetic as expected
from minicache_cpp import kernels
from oracle.quant import TYPES, is_quantized
from support.arrays import normal
from support.contexts import nmse

# The kernels differ from the float64 oracle by float32 summation, and by ties that ggml's vector code may round the
# other way when it stores a row. Both are far below this bound; a wrong weight, row or magnitude is far above it.
BOUND = 1e-6


def case(
    seed: int,
    n_q: int = 3,
    n_kv: int = 50,
    n_head: int = 4,
    n_head_kv: int = 2,
    head_size: int = 64,
    merged: bool = True,
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    k, v = normal(rng, n_kv, n_head_kv, head_size), normal(rng, n_kv, n_head_kv, head_size)
    mask = np.where(rng.random((n_q, n_kv)) < 0.3, -np.inf, 0).astype(np.float32)
    mask[:, 0] = 0  # every query sees something
    arguments: dict[str, Any] = {"q": normal(rng, n_q, n_head, head_size), "k": k, "v": v, "mask": mask}
    if merged:
        k /= np.linalg.norm(k, axis=-1, keepdims=True)
        v /= np.linalg.norm(v, axis=-1, keepdims=True)
        # magnitudes differ between tokens and between heads
        arguments["mag_k"] = rng.uniform(1, 12, (n_kv, n_head_kv)).astype(np.float32)
        arguments["mag_v"] = rng.uniform(1, 12, (n_kv, n_head_kv)).astype(np.float32)
    return arguments


def assert_attends(arguments: dict[str, Any], bound: float = BOUND) -> None:
    """Compares both native kernels with the oracle; `retained` and `current` are the kernels' own tuples."""
    flat = dict(arguments)
    if "retained" in flat:
        kept: kernels.Retained = flat.pop("retained")
        pool = flat["type_k"] if kept.type == "cache" else kept.type
        flat |= {"retained": np.asarray(kept.cells), "pool_k": kept.k, "pool_v": kept.v, "type_pool": pool}
    if "current" in flat:
        now: kernels.Current = flat.pop("current")
        flat |= {"current": np.asarray(now.cells), "cur_k": now.k, "cur_v": now.v}
    want = expected.attention(**flat)
    for threads, reference in ((1, True), (1, False), (2, False)):
        got = kernels.attention(**arguments, n_threads=threads, reference=reference)
        assert got.shape == want.shape
        assert np.isfinite(got).all()
        assert nmse(got, want) <= bound, f"reference={reference}, {threads} threads"


@pytest.mark.parametrize("type_v", TYPES)
@pytest.mark.parametrize("type_k", TYPES)
def test_attention_reads_every_type(type_k: str, type_v: str) -> None:
    assert_attends(case(1) | {"type_k": type_k, "type_v": type_v})


@pytest.mark.parametrize("type_k", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("head_size", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("gqa", [1, 2, 4, 7, 8])
def test_attention_of_head_sizes_and_groups(gqa: int, head_size: int, type_k: str) -> None:
    if head_size % 32 and is_quantized(type_k):
        type_k = "bf16"
    arguments = case(gqa * head_size, n_head=2 * gqa, head_size=head_size)
    assert_attends(arguments | {"type_k": type_k, "type_v": type_k})


@pytest.mark.parametrize("n_kv", [1, 2, 31, 64, 65, 200, 511, 700])
@pytest.mark.parametrize("n_q", [1, 2, 7, 33])
def test_attention_of_odd_lengths(n_q: int, n_kv: int) -> None:
    assert_attends(case(n_q + n_kv, n_q=n_q, n_kv=n_kv))


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("softcap", [0.0, 4.0])
@pytest.mark.parametrize("max_bias", [0.0, 8.0])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("n_head", [4, 6])
def test_attention_options(n_head: int, sinks: bool, max_bias: float, softcap: float, merged: bool) -> None:
    rng = np.random.default_rng(n_head)
    arguments = case(7, n_head=n_head, merged=merged) | {"softcap": softcap, "max_bias": max_bias}
    if sinks:
        arguments["sinks"] = 2 * normal(rng, n_head)
    if max_bias:
        arguments["mask"] = np.where(np.isinf(arguments["mask"]), -np.inf, -np.arange(50) / 4).astype(
            np.float32
        )
    assert_attends(arguments)
    assert_attends(arguments | {"scale": 0.7})


def test_attention_without_a_mask_sees_everything() -> None:
    arguments = case(8) | {"mask": None}
    assert_attends(arguments)
    shown = kernels.attention(**arguments | {"mask": np.zeros((3, 50), np.float32)})
    assert np.array_equal(kernels.attention(**arguments), shown)


def test_attention_of_a_query_that_sees_nothing_is_zero() -> None:
    arguments = case(9)
    arguments["mask"][1] = -np.inf
    for reference in (False, True):
        result = kernels.attention(**arguments, reference=reference)
        assert not result[1].any()
        assert result[0].any() and result[2].any()


@pytest.mark.parametrize("pool", ["f16", "q8_0", "cache"])
@pytest.mark.parametrize("block", [1, 2, 7, 20, 64])
def test_attention_takes_retained_tokens_from_the_pool(block: int, pool: str) -> None:
    rng = np.random.default_rng(block)
    cells = [start + int(rng.integers(min(block, 50 - start))) for start in range(0, 50, block)]
    retained = kernels.Retained(
        cells, normal(rng, len(cells), 2, 64), normal(rng, len(cells), 2, 64), block, pool
    )
    assert_attends(case(10) | {"type_k": "q4_0", "type_v": "q4_0", "retained": retained})


def test_attention_takes_current_tokens_exactly() -> None:
    rng = np.random.default_rng(11)
    current = kernels.Current([49, 3, 17, 18], normal(rng, 4, 2, 64), normal(rng, 4, 2, 64))
    arguments = case(11) | {"type_k": "q4_0", "type_v": "q4_0", "current": current}
    assert_attends(arguments)
    # current tokens are exact: if nothing else is seen, there is no rounding
    arguments["mask"] = np.full((3, 50), -np.inf, np.float32)
    arguments["mask"][:, list(current.cells)] = 0
    assert_attends(arguments, 1e-11)
    # the stale rows that the cache still holds there do not matter
    arguments["k"][list(current.cells)] = 1e4
    arguments["mag_v"][list(current.cells)] = 1e4
    assert_attends(arguments, 1e-11)


def test_attention_with_everything_at_once() -> None:
    rng = np.random.default_rng(12)
    for n_kv, threads_matter in ((61, False), (700, True)):
        cells = np.arange(5, n_kv, 10)
        arguments = case(12, n_q=1 if threads_matter else 9, n_kv=n_kv, n_head=14)
        arguments |= {
            "retained": kernels.Retained(cells, *(normal(rng, len(cells), 2, 64) for _ in "kv"), 10, "q8_0"),
            "current": kernels.Current([6, 0, n_kv - 1], *(normal(rng, 3, 2, 64) for _ in "kv")),
            "sinks": normal(rng, 14),
            "softcap": 9.0,
            "max_bias": 4.0,
            "type_k": "q5_1",
            "type_v": "iq4_nl",
        }
        assert_attends(arguments)


def test_attention_stays_finite_with_the_longest_magnitudes() -> None:
    arguments = case(13)
    for name in ("mag_k", "mag_v"):
        arguments[name] = np.full_like(arguments[name], 65504)
    assert_attends(arguments)
    arguments["mag_k"] = arguments["mag_k"] * np.float32(1e6)  # clamped to the largest f16
    assert_attends(arguments)


def test_the_bound_excludes_mistakes() -> None:
    """Mistakes that a kernel could make are far above the bound of the tests above."""
    arguments = case(14)
    want = expected.attention(**arguments)
    swapped = expected.attention(**arguments | {"mag_k": arguments["mag_v"], "mag_v": arguments["mag_k"]})
    lost = expected.attention(**arguments | {"mag_v": None})
    shifted = expected.attention(**arguments | {"k": np.roll(arguments["k"], 1, axis=0)})
    for wrong in (swapped, lost, shifted):
        assert nmse(wrong, want) > 1e4 * BOUND


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"k": np.zeros((50, 2, 32), np.float32)}, "k"),
        ({"v": np.zeros((49, 2, 64), np.float32)}, "v"),
        ({"mag_k": np.zeros((50, 3), np.float32)}, "mag_k"),
        ({"mask": np.zeros((3, 49), np.float32)}, "mask"),
        ({"q": np.full((3, 4, 64), np.nan, np.float32)}, "q"),
        ({"type_k": "q9_9"}, "type_k"),
        ({"q": np.zeros((3, 3, 64), np.float32)}, "multiple"),
    ],
)
def test_attention_refuses_nonsense(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        kernels.attention(**case(15) | change)

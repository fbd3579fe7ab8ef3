"""The native kernels on arrays against the NumPy oracle: every type, every edge, every option."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import oracle.arithmetic as expected
from minicache_cpp import kernels
from oracle.quant import TYPES, is_quantized
from support.contexts import nmse

Floats = npt.NDArray[np.float32]

# What separates the kernels from the float64 oracle is float32 summation, and halves that ggml's vector code may round
# the other way when it stores a row. Both are far below this; a wrong weight, row or magnitude is far above.
BOUND = 1e-6


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


#
# merge and restore
#


def assert_merged(x_a: Floats, x_b: Floats, t: float) -> kernels.Merged:
    with np.errstate(over="ignore", under="ignore"):
        got, want = kernels.merge(x_a, x_b, t), expected.merge(x_a, x_b, t)
    for name, value in got._asdict().items():
        assert np.isfinite(value).all(), name
    np.testing.assert_allclose(got.direction, want.direction, atol=2e-6)
    tiny = 2e-45  # float32's precision is absolute where numbers are denormal
    np.testing.assert_allclose(got.mag_a, want.mag_a, rtol=1e-6, atol=tiny)
    np.testing.assert_allclose(got.mag_b, want.mag_b, rtol=1e-6, atol=tiny)
    np.testing.assert_allclose(got.distance, want.distance, atol=1e-6)
    return got


@pytest.mark.parametrize("t", [0.0, 0.25, 0.6, 1.0])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 2), (3, 2, 32), (17, 4, 64), (5, 3, 80), (65, 1, 128), (2, 8, 576)]
)
def test_merge_is_slerp(shape: tuple[int, int, int], t: float) -> None:
    rng = np.random.default_rng([*shape, int(100 * t)])
    assert_merged(normal(rng, *shape), normal(rng, *shape), t)


def test_merge_keeps_what_the_paper_keeps() -> None:
    rng = np.random.default_rng(3)
    x_a, x_b = normal(rng, 20, 2, 64), normal(rng, 20, 2, 64)
    merged = kernels.merge(x_a, x_b, 0.6)
    np.testing.assert_allclose(np.linalg.norm(merged.direction, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(merged.mag_a, np.linalg.norm(x_a, axis=-1), rtol=1e-6)
    np.testing.assert_allclose(merged.mag_b, np.linalg.norm(x_b, axis=-1), rtol=1e-6)
    # t is the way from a to b: the direction is t·Ω away from a's
    u_a = x_a / np.linalg.norm(x_a, axis=-1, keepdims=True)
    angle = np.arccos((u_a * merged.direction).sum(-1))
    np.testing.assert_allclose(angle / np.pi, 0.6 * merged.distance, atol=1e-4)


def test_merge_at_the_ends_gives_one_layer_back() -> None:
    rng = np.random.default_rng(4)
    x_a, x_b = normal(rng, 9, 2, 32), normal(rng, 9, 2, 32)
    merged_a, merged_b = kernels.merge(x_a, x_b, 0.0), kernels.merge(x_a, x_b, 1.0)
    np.testing.assert_allclose(kernels.restore(merged_a.direction, merged_a.mag_a), x_a, atol=1e-5)
    np.testing.assert_allclose(kernels.restore(merged_b.direction, merged_b.mag_b), x_b, atol=1e-5)


def edge_cases() -> dict[str, tuple[Floats, Floats]]:
    rng = np.random.default_rng(5)
    x, y = normal(rng, 6, 2, 32), normal(rng, 6, 2, 32)
    zero, unit = np.zeros_like(x), x / np.linalg.norm(x, axis=-1, keepdims=True)
    across = y - (y * unit).sum(-1, keepdims=True) * unit
    across /= np.linalg.norm(across, axis=-1, keepdims=True)
    one = zero.copy()
    one[..., 3] = 1
    cases = {
        "zero a": (zero, y),
        "zero b": (x, zero),
        "both zero": (zero, zero),
        "negative zero": (-zero, y),
        "equal": (x, x),
        "parallel": (x, np.float32(7) * x),
        "opposite": (x, -x),
        "opposite, longer": (x, np.float32(-3) * x),
        "one number each": (one, np.roll(one, 1, axis=-1)),
        "denormal": (x * np.float32(1e-41), y),
        "both denormal": (x * np.float32(1e-41), y * np.float32(1e-41)),
        "huge": (x * np.float32(1e30), y * np.float32(1e36)),
        "huge and tiny": (x * np.float32(1e36), y * np.float32(1e-36)),
        "too long for f16": (unit * np.float32(65504), unit * np.float32(1e6)),
    }
    for angle in (1e-1, 1e-2, 2e-3, 5e-4, 1e-5, 1e-7):
        turned = np.cos(angle) * unit + np.sin(angle) * across
        cases[f"{angle:g} apart"] = (unit, turned.astype(np.float32))
        cases[f"{angle:g} from opposite"] = (unit, -turned.astype(np.float32))
    return {name: (a.astype(np.float32), b.astype(np.float32)) for name, (a, b) in cases.items()}


@pytest.mark.parametrize("t", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("case", edge_cases())
def test_merge_at_the_edges(case: str, t: float) -> None:
    assert_merged(*edge_cases()[case], t)


def test_edges_mean_what_the_design_says() -> None:
    cases = edge_cases()
    x, y = cases["zero b"][0], cases["zero a"][1]
    unit_x, unit_y = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y))

    merged = kernels.merge(*cases["zero a"])
    np.testing.assert_allclose(merged.direction, unit_y, atol=1e-6)
    assert not merged.mag_a.any() and not merged.distance.any()
    merged = kernels.merge(*cases["zero b"])
    np.testing.assert_allclose(merged.direction, unit_x, atol=1e-6)
    assert not merged.mag_b.any() and not merged.distance.any()
    merged = kernels.merge(*cases["both zero"])
    assert not any(value.any() for value in merged)
    merged = kernels.merge(*cases["opposite"])
    np.testing.assert_allclose(merged.direction, unit_x, atol=1e-6)
    assert (merged.distance == 1).all()
    merged = kernels.merge(*cases["too long for f16"])
    assert (merged.mag_b == 65504).all()


def test_restore() -> None:
    rng = np.random.default_rng(6)
    direction, mag = normal(rng, 7, 3, 40), normal(rng, 7, 3) ** 2
    np.testing.assert_allclose(kernels.restore(direction, mag), expected.restore(direction, mag), rtol=1e-6)


#
# attention
#


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
        # layers' magnitudes differ from token to token and from head to head
        arguments["mag_k"] = rng.uniform(1, 12, (n_kv, n_head_kv)).astype(np.float32)
        arguments["mag_v"] = rng.uniform(1, 12, (n_kv, n_head_kv)).astype(np.float32)
    return arguments


def assert_attends(arguments: dict[str, Any], bound: float = BOUND) -> None:
    """Both native kernels against the oracle; `retained` and `current` are the kernels' own tuples."""
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
    # exactly: when nothing else is seen, no rounding is left
    arguments["mask"] = np.full((3, 50), -np.inf, np.float32)
    arguments["mask"][:, list(current.cells)] = 0
    assert_attends(arguments, 1e-11)
    # the stale row that the cache still holds there does not matter
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
    arguments["mag_k"] = arguments["mag_k"] * np.float32(1e6)  # clamped to what f16 holds
    assert_attends(arguments)


def test_the_bound_tells_mistakes_apart() -> None:
    """The mistakes that a kernel could make are far above the bound that the tests above use."""
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


@pytest.mark.parametrize("t", [-0.1, 1.5, np.nan])
def test_merge_refuses_nonsense(t: float) -> None:
    x = np.ones((2, 1, 32), np.float32)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        kernels.merge(x, x, t)
    with pytest.raises(ValueError, match="shape"):
        kernels.merge(x, np.ones((3, 1, 32), np.float32))

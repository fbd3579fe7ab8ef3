"""The native merge and restore on arrays, against the NumPy oracle."""

from __future__ import annotations

import numpy as np
import pytest

import oracle.arithmetic as expected
from minicache_cpp import kernels
from support.arrays import Floats, normal


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


def test_edges_follow_the_design() -> None:
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


@pytest.mark.parametrize("t", [-0.1, 1.5, np.nan])
def test_merge_refuses_nonsense(t: float) -> None:
    x = np.ones((2, 1, 32), np.float32)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        kernels.merge(x, x, t)
    with pytest.raises(ValueError, match="shape"):
        kernels.merge(x, np.ones((3, 1, 32), np.float32))

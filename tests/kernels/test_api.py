"""The functions of `minicache_cpp.kernels` follow the paper's formulas and refuse wrong arrays."""

from __future__ import annotations

import re

import numpy as np
import pytest

from minicache_cpp import MiniCacheError, kernels
from minicache_cpp.kernels import Current, Retained


def test_merge_and_restore_are_the_papers(rng: np.random.Generator) -> None:
    x_a, x_b = rng.standard_normal((2, 5, 3, 64)).astype(np.float32)
    merged = kernels.merge(x_a, x_b, t=0.6)
    length_a, length_b = np.linalg.norm(x_a, axis=-1), np.linalg.norm(x_b, axis=-1)
    u_a, u_b = x_a / length_a[..., None], x_b / length_b[..., None]
    angle = np.arccos((u_a * u_b).sum(-1))
    weights = np.sin(0.4 * angle) / np.sin(angle), np.sin(0.6 * angle) / np.sin(angle)
    expected = weights[0][..., None] * u_a + weights[1][..., None] * u_b
    np.testing.assert_allclose(merged.direction, expected, atol=1e-5)
    np.testing.assert_allclose(merged.mag_a, length_a, rtol=1e-3)
    np.testing.assert_allclose(merged.mag_b, length_b, rtol=1e-3)
    np.testing.assert_allclose(merged.distance, angle / np.pi, atol=1e-5)
    restored = kernels.restore(merged.direction, merged.mag_a)
    np.testing.assert_allclose(restored, expected * length_a[..., None], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("reference", [False, True])
def test_attention_is_a_softmax(rng: np.random.Generator, reference: bool) -> None:
    q = rng.standard_normal((4, 6, 32)).astype(np.float32)
    k, v = rng.standard_normal((2, 50, 2, 32)).astype(np.float32)
    mag_k, mag_v = rng.uniform(0.5, 2, (2, 50, 2)).astype(np.float32)
    mask = np.where(rng.random((4, 50)) < 0.3, -np.inf, 0.0)
    mask[:, 0] = 0
    cells = np.array([3, 27])
    pool_k, pool_v = rng.standard_normal((2, 2, 2, 32)).astype(np.float32)
    now = np.array([48, 49])
    cur_k, cur_v = rng.standard_normal((2, 2, 2, 32)).astype(np.float32)
    result = kernels.attention(
        q, k, v, mag_k=mag_k, mag_v=mag_v, mask=mask, reference=reference, n_threads=2,
        retained=Retained(cells, pool_k, pool_v, block=25, type="f16"), current=Current(now, cur_k, cur_v),
    )  # fmt: skip
    full_k, full_v = kernels.restore(k, mag_k), kernels.restore(v, mag_v)
    full_k[cells], full_v[cells] = pool_k, pool_v
    full_k[now], full_v[now] = cur_k, cur_v
    full_k, full_v = np.repeat(full_k, 3, axis=1), np.repeat(full_v, 3, axis=1)
    scores = np.einsum("qhd,khd->qhk", q, full_k) / np.sqrt(32) + mask[:, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(result, np.einsum("qhk,khd->qhd", weights, full_v), atol=3e-3)


ARRAY = np.ones((4, 2, 32), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kernels.merge(ARRAY[0], ARRAY[0]), "2 dimensions"),
        (lambda: kernels.merge(ARRAY, ARRAY[:3]), "the same shape"),
        (lambda: kernels.merge(ARRAY, ARRAY, t=2.0), "[0, 1]"),
        (lambda: kernels.merge(ARRAY, ARRAY, t=float("nan")), "[0, 1]"),
        (lambda: kernels.merge(ARRAY[:0], ARRAY[:0]), "empty"),
        (lambda: kernels.merge(ARRAY.astype(complex), ARRAY), "complex"),
        (lambda: kernels.merge(ARRAY * np.nan, ARRAY), "NaN"),
        (lambda: kernels.merge(ARRAY.astype(float) * 1e300, ARRAY), "float32"),
        (lambda: kernels.restore(ARRAY, ARRAY[:, :, 0].T), "[4, 2]"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY[:3]), "v is [3, 2, 32]"),
        (lambda: kernels.attention(ARRAY[:, :, :16], ARRAY, ARRAY), "k is [4, 2, 32]"),
        (lambda: kernels.attention(ARRAY[:, :1], ARRAY, ARRAY), "multiple"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, mag_k=ARRAY[0]), "mag_k"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, mask=np.zeros((4, 5))), "mask is [4, 5]"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, type_k="q3_0"), "type_k='q3_0'"),
        (lambda: kernels.attention(*[ARRAY[:, :, :24]] * 3, type_k="q4_0"), "head size 24"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, scale=float("inf")), "scale"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, n_threads=0), "n_threads"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, current=Current([4], *[ARRAY[:1]] * 2)), "0 to 3"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, current=Current([1], ARRAY, ARRAY)), "current.k"),
        (
            lambda: kernels.attention(ARRAY, ARRAY, ARRAY, retained=Retained([0, 1], *[ARRAY[:2]] * 2, 4)),
            "block",
        ),
    ],
)
def test_wrong_arrays_are_refused(call: object, words: str) -> None:
    with pytest.raises(MiniCacheError, match=re.escape(words)):
        call()  # type: ignore[operator]

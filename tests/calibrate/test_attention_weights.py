"""The weights of errors in cached K and V agree with the errors that they cause in attention's output."""

from __future__ import annotations

import numpy as np
import pytest

from minicache_cpp.calibrate.attention_weights import Doubles, Floats, attention_weights

N, N_HEAD, N_KV, D = 40, 4, 2, 16


def inputs(rng: np.random.Generator, n_token: int = N) -> tuple[Floats, Floats, Floats]:
    q, k, v = (rng.standard_normal((n_token, n, D)).astype(np.float32) for n in (N_HEAD, N_KV, N_KV))
    return 2 * q, k * np.linspace(0.5, 2, D, dtype=np.float32), v


def attended(q: Floats, k: Floats, v: Floats, k_far: Floats, v_far: Floats, window: int) -> Doubles:
    """Attention of every token, which reads what the window does not hold from k_far and v_far."""
    at, first = np.arange(N), window // 16
    far = (at[:, None] - at >= window - first) & (at >= first)
    out = np.zeros((N, N_HEAD, D))
    for head in range(N_HEAD):
        kv = head // (N_HEAD // N_KV)
        scores = np.where(far, q[:, head] @ k_far[:, kv].T, q[:, head] @ k[:, kv].T) / np.sqrt(D)
        p = np.exp(np.where(at[:, None] >= at, scores, -np.inf))
        p /= p.sum(axis=1, keepdims=True)
        out[:, head] = np.where(far, p, 0) @ v_far[:, kv] + np.where(far, 0, p) @ v[:, kv]
    return out


@pytest.mark.parametrize("window", [0, 1, 8, 18])
@pytest.mark.parametrize("kind", ["k", "v"])
def test_small_errors_have_the_expected_effect(kind: str, window: int) -> None:
    rng = np.random.default_rng(3)
    q, k, v = (one.astype(np.float64) for one in inputs(rng))
    gain = np.array([0.5, 1.0, 2.0, 4.0])
    read = attention_weights(q, k, v, gain, window)
    x = k if kind == "k" else v
    length = np.linalg.norm(x, axis=2, keepdims=True)
    sizes = rng.uniform(0.2, 1, (N_KV, D)) * 1e-3  # deviations of the errors of unit vectors
    exact = attended(q, k, v, k, v, max(1, window))
    measured = []
    for _ in range(300):
        wrong = x + length * sizes * rng.standard_normal(x.shape)
        other = attended(q, k, v, *((wrong, v) if kind == "k" else (k, wrong)), max(1, window))
        measured.append((gain[:, None] * (other - exact) ** 2).sum(axis=(1, 2)).mean())
    weight = read.k if kind == "k" else read.v[:, None]
    expected = (weight * sizes**2).sum()
    assert np.mean(measured) == pytest.approx(expected, rel=0.1)


def test_tokens_count_as_they_are_read() -> None:
    rng = np.random.default_rng(4)
    q, k, v = inputs(rng)
    q[:, :, 0] = 6
    k[5, :, 0] = 8  # every token attends to this one
    read = attention_weights(q, k, v, np.ones(N_HEAD), 4)
    for tokens in (read.tokens_k, read.tokens_v):
        assert tokens.shape == (N, N_KV)
        np.testing.assert_allclose(tokens.mean(axis=0), 1)
        assert (tokens.argmax(axis=0) == 5).all()
        assert tokens[5].min() > 5
        # no query lies a window behind the last tokens: they all have the same small weight
        assert np.ptp(tokens[-4:], axis=0).max() == pytest.approx(0)
        assert tokens[-1].min() > 0


def test_tokens_that_the_window_holds_for_good_do_not_count() -> None:
    q, k, v = inputs(np.random.default_rng(6), 200)
    k[:4] *= 3  # outliers, which every query reads
    read = attention_weights(q, k, v, np.ones(N_HEAD), 64)
    for tokens in (read.tokens_k, read.tokens_v):
        assert (tokens[:4] == 0).all()
        assert (tokens[4:] > 0).all()
        np.testing.assert_allclose(tokens.mean(axis=0), 1)


def test_some_queries_represent_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(np.random.default_rng(5), 800)
    every = attention_weights(q, k, v, np.ones(N_HEAD), 8)
    monkeypatch.setattr("minicache_cpp.calibrate.attention_weights.MOST_QUERIES", 100)
    some = attention_weights(q, k, v, np.ones(N_HEAD), 8)
    np.testing.assert_allclose(some.k.sum(), every.k.sum(), rtol=0.3)
    np.testing.assert_allclose(some.v, every.v, rtol=0.3)
    assert some.tokens_k.shape == every.tokens_k.shape


@pytest.mark.parametrize("window", [0, 30, 1000])
def test_nothing_to_read_is_finite(window: int) -> None:
    for n in (1, 2, 40):
        zero = np.zeros((n, 2, D), np.float32)
        read = attention_weights(zero, zero, zero, np.ones(2), window)
        for one in (read.k, read.v, read.tokens_k, read.tokens_v):
            assert np.isfinite(one).all()

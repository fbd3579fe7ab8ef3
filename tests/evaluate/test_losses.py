"""Losses of a cache, compared with values that were computed by hand or from their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from minicache_cpp.evaluate.losses import Losses
from minicache_cpp.reading.divergence import log_probabilities


def logs(*probabilities: list[float]) -> np.ndarray:  # type: ignore[type-arg]
    return np.log(np.array(probabilities, np.float32))


def test_losses_are_those_of_the_definitions() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((2, 40, 30)).astype(np.float32) * 4
    p, q = (np.exp(one.astype(np.float64)) for one in logits)
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    reference, ours = map(log_probabilities, logits)
    kl = (p * np.log(p / q)).sum(axis=1)
    losses = Losses()
    following = rng.integers(30, size=40).tolist()
    losses.add(reference[:25], ours[:25], following[:25], 0)
    losses.add(reference[25:], ours[25:], following[25:39], 25)  # nothing follows the last token
    summary = losses.summary(losses)
    at = (np.arange(39), following[:39])
    assert losses.n_tokens == 40
    assert summary["kl_mean"] == pytest.approx(kl.mean(), rel=1e-4)
    assert summary["kl_median"] == pytest.approx(np.sort(kl)[19:21].mean(), rel=1e-4)
    assert summary["top1"] == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert summary["ppl"] == pytest.approx(np.exp(-np.log(q[at]).mean()), rel=1e-4)
    assert summary["ppl_ratio"] == pytest.approx(np.exp(np.log(p[at] / q[at]).mean()), rel=1e-4)


def test_perplexity_has_its_own_error_and_a_paired_one() -> None:
    # ours gives the next token 1/2 and 1/8, the reference 1/2 and 1/4
    reference, ours = logs([0.5, 0.5], [0.75, 0.25]), logs([0.5, 0.5], [0.875, 0.125])
    losses = Losses()
    losses.add(reference, ours, [0, 1], 0)
    found = losses.summary(losses)
    assert found["ppl"] == pytest.approx(4)  # the square root of 2 · 8
    # -ln p is ln 2 and 3 ln 2: the deviation is ln 2, over the square root of 2 tokens
    assert found["ppl_stderr"] == pytest.approx(4 * np.log(2) / 2**0.5)
    # by token, the ratio is 1 and 2: the mean of the logarithm is ln 2 / 2, and so is the deviation
    assert found["ppl_ratio"] == pytest.approx(2**0.5)
    assert found["ppl_ratio_stderr"] == pytest.approx(2**0.5 * np.log(2) / 2 / 2**0.5)


def test_quantiles_are_those_of_sorted_tokens() -> None:
    rows = [[0.5, 0.5], [0.5, 0.5]]
    losses = Losses()
    losses.add(logs(*rows), logs(*rows), [0, 0], 0)
    losses.kl = [np.arange(1001, dtype=np.float64)[::-1]]
    losses.same = [np.arange(1001) < 900]
    losses.contexts = [np.arange(1001)]
    found = losses.summary(losses)
    assert (found["kl_median"], found["kl_p99"], found["kl_p999"], found["kl_max"]) == (500, 990, 999, 1000)
    assert found["top1"] == pytest.approx(900 / 1001)
    assert found["top1_stderr"] == pytest.approx((900 * 101 / 1001**2 / 1001) ** 0.5)


def test_the_excess_is_what_the_floor_does_not_explain() -> None:
    same, other = logs([0.5, 0.5]), logs([0.8, 0.2])
    kl = 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)
    losses, floor = Losses(), Losses()
    for ours, total in ((other, losses), (same, floor)):
        total.add(same, ours, [0], 7)
    losses.add(same, other, [0], 8)
    floor.add(same, other, [0], 8)
    found = losses.summary(floor)
    assert found["kl_mean"] == pytest.approx(kl)
    assert found["kl_floor"] == pytest.approx(kl / 2)
    assert found["kl_excess"] == pytest.approx(kl / 2)
    # kl at one token and nothing at the other: the deviation is kl/2, over the square root of 2 tokens
    assert found["kl_excess_stderr"] == pytest.approx(kl / 2 / 2**0.5)


def test_buckets_double_in_length() -> None:
    losses, floor = Losses(), Losses()
    for total, factor in ((losses, 1.0), (floor, 0.1)):
        total.kl = [factor * np.array([1.0, 2.0, 3.0, 5.0, 8.0])]
        total.contexts = [np.array([255, 256, 511, 1024, 2047])]
    found = losses.by_position(floor)
    assert list(found) == ["0-256", "256-512", "1024-2048"]
    assert [one["kl_mean"] for one in found.values()] == [1, 2.5, 6.5]
    assert [one["kl_floor"] for one in found.values()] == pytest.approx([0.1, 0.25, 0.65])
    assert [one["kl_mean_stderr"] for one in found.values()] == pytest.approx([0, 0.5 / 2**0.5, 1.5 / 2**0.5])
    assert [one["tokens"] for one in found.values()] == [1, 2, 2]

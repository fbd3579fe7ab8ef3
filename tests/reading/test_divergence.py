"""KL divergence, compared with its definition, and the file that the reference is kept in."""

from __future__ import annotations

import numpy as np
import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.reading.divergence import Reference, kl_divergence, log_probabilities
from support.disks import LIMITS, files_of_at_most


def test_divergence_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((2, 40, 30)).astype(np.float32) * 4
    p, q = (np.exp(one.astype(np.float64)) for one in logits)
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    reference, ours = map(log_probabilities, logits)
    kl = (p * np.log(p / q)).sum(axis=1)
    assert np.allclose(kl_divergence(reference, ours), kl, rtol=1e-4)


def test_impossible_tokens_add_nothing() -> None:
    reference = log_probabilities(np.array([[0.0, 1.0, -np.inf]], np.float32))
    assert kl_divergence(reference, reference) == 0
    assert np.isinf(kl_divergence(log_probabilities(np.zeros((1, 3), np.float32)), reference))


@LIMITS
def test_a_reference_without_room_on_the_disk_is_refused() -> None:
    """Where it is made, as a mapping of a file on a full disk ends the process when it is written to."""
    with files_of_at_most(50_000), pytest.raises(MiniCacheError, match=r"no room for 0\.19 MiB.*TMPDIR"):
        Reference(50, 1000)
    reference = Reference(50, 1000)
    reference.rows[:] = 1
    reference.close()

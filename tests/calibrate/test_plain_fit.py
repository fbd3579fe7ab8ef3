"""The rounding and rotation that calibration expects of a cache type are those of ggml and llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest

from minicache_cpp.calibrate.plain_fit import hadamard, round_trip
from oracle.quant import TYPES
from oracle.quant import round_trip as stored


@pytest.mark.parametrize("kind", TYPES)
def test_rounding_is_ggmls(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 64)).astype(np.float32)
    x[2, 1] = 0
    np.testing.assert_allclose(round_trip(x, kind), stored(x, kind), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("n", [64, 128])
def test_the_rotation_is_orthogonal_and_upstreams(n: int) -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    x = np.random.default_rng(0).standard_normal((4, 2, 128)).astype(np.float32)
    expected = (x.reshape(-1, n) @ matrix / np.sqrt(n)).reshape(x.shape)
    np.testing.assert_allclose(hadamard(x, n), expected, atol=1e-5)
    np.testing.assert_allclose(hadamard(hadamard(x, n), n), x, atol=1e-5)

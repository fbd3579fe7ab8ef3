"""NumPy's linear algebra has one thread where several of ours use it, and as many as before afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minicache_cpp.host.blas import one_blas_thread
from minicache_cpp.host.threads import side_by_side


def blas_threads() -> list[int]:
    """Of each BLAS that is loaded."""
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


def test_work_side_by_side_uses_one_thread_of_blas_each() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    if not blas_threads():
        pytest.skip("this NumPy has no BLAS whose threads can be counted, as on a Mac")
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        for seen in side_by_side(lambda _: blas_threads(), range(3), 2):
            assert set(seen) == {1}
        assert blas_threads() == before
        with pytest.raises(ZeroDivisionError):
            list(side_by_side(lambda n: 1 // n, [0], 1))
        assert blas_threads() == before


def test_the_last_one_that_leaves_gives_the_threads_back() -> None:
    if not blas_threads():
        pytest.skip("this NumPy has no BLAS whose threads can be counted, as on a Mac")
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert set(blas_threads()) == {1}
        second.__exit__(None, None, None)
        assert blas_threads() == before

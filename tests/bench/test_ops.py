"""How the times of ops are shared out among their kinds."""

from __future__ import annotations

import pytest

from minicache_cpp import CacheSpec
from minicache_cpp.bench import ops
from minicache_cpp.bench.ops import KINDS, Sample


def test_the_time_to_start_nodes_is_left_out() -> None:
    nodes = dict.fromkeys(KINDS, 0) | {"attention": 2, "merge": 1, "rest": 7}
    seconds = dict.fromkeys(KINDS, 0.0) | {"attention": 8e-3, "merge": 1e-3, "rest": 3e-3}
    sample = Sample(10e-3, seconds, nodes)  # 10 nodes took 2 ms more when run one by one
    assert sample.start == pytest.approx(0.2e-3)
    row = ops.row(CacheSpec.parse("f16"), 64, "decode", 1, sample, sample.start)
    assert row["shares"]["attention"] == pytest.approx(7.6 / 10)
    assert row["keeping"] == pytest.approx(0.8 / 10)
    # never more than the quickest nodes take, and never negative
    assert Sample(1e-3, seconds, nodes).start == pytest.approx(3e-3 / 7)
    assert Sample(99.0, seconds, nodes).start == 0

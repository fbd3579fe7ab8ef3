"""scripts/random_plan.py: plans with random codecs have the ratio that was asked for, and run."""

from __future__ import annotations

from pathlib import Path

import pytest

import random_plan
from minicache_cpp import CacheSpec
from minicache_cpp.bench.speed import measure
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.modelfile.gguf_file import read_gguf


@pytest.mark.parametrize("ratio", [5, 8])
def test_random_plans_have_the_ratio(plans: dict[str, Path], ratio: int) -> None:
    plan = PlanFile.open(plans[str(ratio)]).plan
    assert [group.layers for group in plan.groups] == [(0, 1), (2, 3)]
    for group in plan.groups:
        f16 = 2 * 2 * (group.d_k + group.d_v) * group.n_head_kv
        assert ratio <= f16 / group.token_bytes < 1.15 * ratio
        for layout_k, layout_v in zip(group.layouts_k, group.layouts_v, strict=True):
            assert layout_k.bits > layout_v.bits
        # heads differ, as in plans that are calibrated
        assert group.layouts_k[0].bits > group.layouts_k[-1].bits
        assert group.layouts_v[0].bits > group.layouts_v[-1].bits
    assert plan.window == random_plan.WINDOW


def test_random_plans_run(small_gguf: Path, plans: dict[str, Path]) -> None:
    specs = [CacheSpec.parse(str(path)) for path in plans.values()]
    rows = measure(read_gguf(small_gguf), [600], specs, 1, 1, copies=True)["rows"]
    assert rows[0]["kv_bytes"] > rows[1]["kv_bytes"]
    assert [row["cache"] for row in rows] == ["f16", "f16", "q4_0", "f16"]
    assert [group.layers for group in PlanFile.open(plans["four"]).plan.groups] == [(0, 1, 2, 3)]
    assert not PlanFile.open(plans["plain"]).plan.groups

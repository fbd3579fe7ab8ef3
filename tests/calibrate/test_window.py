"""Calibration for a cache with a window, which keeps the latest tokens exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import CacheSpec, Llama
from minicache_cpp.cache.plan_file import PlanFile, write_plan
from minicache_cpp.calibrate.material import Chunk
from minicache_cpp.calibrate.meter import Meter
from minicache_cpp.calibrate.table import table
from minicache_cpp.reading.model import NativeModel
from support import tiny_models
from support.calibrations import made, read_codec


@pytest.mark.parametrize("window", [0, 40])
def test_everything_is_measured_with_the_window(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    measure = Meter.measure
    windows: list[int] = []
    folders: list[Path] = []

    def seen(self: Meter, spec: CacheSpec, kind: str, name: str = "") -> Any:
        if spec.minicache is not None and spec.minicache.groups:  # plans without groups have no window
            windows.append(spec.minicache.window)
        folders.append(self.memory.parent)
        return measure(self, spec, kind, name)

    monkeypatch.setattr(Meter, "measure", seen)
    found = made(models["plain"], text, tmp_path / "plan.gguf", window=window, thorough=True, refine=1)
    assert set(windows) == {window}
    assert len(windows) >= 1 + 8 + 1  # the plan, and those that refining measures
    plan = PlanFile.open(found["plan"]).plan
    assert (plan.window, plan.notes["window"], found["window"]) == (window, window, window)
    assert ("the first 2 and the latest 38 tokens are kept as q8_0" in table(found)) == bool(window)
    n_ctx = found["context"]
    with Llama(str(models["plain"]), n_ctx=n_ctx, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert report.window == (n_ctx // 32 if window else 0)  # which is more than 40
    row = found["rows"][0]
    assert row["fixed_bytes"] == pytest.approx(report.fixed_bytes, abs=32 * 20)
    assert row["ratio"] >= 5.0
    # another window has intermediate results of its own
    monkeypatch.setattr(Meter, "measure", measure)
    made(models["plain"], text, tmp_path / "plan.gguf", window=window + 1, thorough=True)
    assert len(set(folders)) == 1


def test_a_window_costs_less_loss(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """The same tokens are read with a cache that keeps the latest exactly and with one that does not."""
    found = made(models["plain"], text, tmp_path / "plan.gguf", window=24, ratio=8.0)
    plan = PlanFile.open(found["plan"]).plan
    assert plan.groups
    tensors = {group.first: read_codec(found["plan"], group.first) for group in plan.groups}
    kl = {}
    for window in (0, 24):
        path = tmp_path / f"{window}.gguf"
        write_plan(path, replace(plan, window=window), tensors)
        chunks = {"check": [Chunk(tiny_models.prompt(120, seed=seed), 0, 24) for seed in range(4)]}
        memory = tmp_path / f"{window}.json"
        with NativeModel(models["plain"]) as model, Meter(model, chunks, 1, memory) as meter:
            kl[window] = meter.measure(CacheSpec.parse(str(path)), "check").kl
    assert 0 < kl[24] < kl[0]

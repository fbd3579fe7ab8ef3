"""A plan reaches the target that was asked for: a ratio, a loss or a number of bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import CacheSpec, Llama, MiniCacheError
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.calibrate.meter import Measured, Meter, standard_error
from minicache_cpp.calibrate.table import table
from minicache_cpp.host.progress import Progress
from support.calibrations import made


def test_the_plan_meets_the_ratio_and_says_why(models: dict[str, Path], found: dict[str, Any]) -> None:
    plan = PlanFile.open(found["plan"]).plan
    assert [group.layers for group in plan.groups] == [(0, 1), (2, 3)]
    with Llama(str(models["plain"]), n_ctx=4096, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert 5.0 <= report.ratio < 5.1
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["bytes"] == pytest.approx(report.bytes, abs=4096)
    assert rows["plan"]["ratio"] == pytest.approx(report.ratio, rel=1e-3)
    assert rows["f16"]["kl"] == 0.0
    assert 0 < rows["q8_0"]["kl"] < rows["plan"]["kl"]
    assert sum(row["share"] for row in found["choices"]) == pytest.approx(1)
    assert plan.notes["choices"] == found["choices"]
    assert plan.notes["checked"]["kl"] == rows["plan"]["kl"]
    for pair, row in zip(plan.groups, found["choices"], strict=True):
        n_number = pair.n_head_kv * 2 * pair.d_k
        assert row["bits_k"] == sum(one.bits for one in pair.layouts_k) / n_number
        assert min(row["sensitivity_k"] + row["sensitivity_v"]) > 0
    printed = table(found)
    for words in ("0+1", "2+3", "ratio 5", "q4_0", str(found["plan"])):
        assert words in printed


def test_the_plan_holds_more_than_q4_0_does_at_its_size(
    models: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=3.56)
    rows = {row["name"]: row for row in found["rows"]}
    assert found["choices"]
    assert rows["plan"]["ratio"] >= 3.56
    assert rows["plan"]["kl"] < rows["q4_0"]["kl"]


def test_max_kl_is_kept(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=None, max_kl=0.01)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["kl"] + rows["plan"]["kl_error"] <= 0.01
    assert rows["plan"]["kl_error"] > 0
    assert rows["plan"]["ratio"] > 1.88
    # a smaller loss takes more room
    other = made(models["plain"], text, tmp_path / "other.gguf", ratio=None, max_kl=0.002)
    assert next(row for row in other["rows"] if row["name"] == "plan")["ratio"] < rows["plan"]["ratio"]


@pytest.mark.parametrize(("n_ctx", "checked_at"), [(1500, 1500), (200, 512)])
def test_the_loss_is_checked_at_the_context_it_is_for(
    models: dict[str, Path], text: Path, tmp_path: Path, n_ctx: int, checked_at: int
) -> None:
    found = made(
        models["plain"], text, tmp_path / "plan.gguf", ratio=None, max_kl=0.02, n_ctx=n_ctx, tokens=5120
    )
    assert found["checked_at"] == checked_at
    assert f"in contexts of {found['checked_at']}," in table(found)


def test_what_cannot_be_promised_is_reported(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out text on which every plan loses more than on the text that plans were chosen by."""
    measure = Meter.measure

    def worse(self: Meter, spec: CacheSpec, kind: str, name: str = "") -> Measured:
        found = measure(self, spec, kind, name)
        return replace(found, kl=found.kl + 0.02) if kind == "check" else found

    notes: list[str] = []
    monkeypatch.setattr(Meter, "measure", worse)
    monkeypatch.setattr(Progress, "note", lambda self, words: notes.append(words))
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=None, max_kl=0.01)
    assert found["rows"][0]["kl"] > 0.01
    assert [words for words in notes if "may be more than 0.01" in words]


def test_the_error_of_a_mean_knows_that_neighbours_are_alike() -> None:
    rng = np.random.default_rng(1)
    stretches = rng.standard_normal(400)
    alike = [np.repeat(stretches, 16).tolist()]
    assert standard_error(alike) == pytest.approx(1 / 20, rel=0.15)
    assert standard_error([rng.standard_normal(6400).tolist()]) == pytest.approx(1 / 80, rel=0.15)
    assert standard_error([[0.1]]) == 0.0


def test_a_budget_is_kept_codecs_included(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    budget = 300_000
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=None, budget=budget, n_ctx=2048)
    with Llama(str(models["plain"]), n_ctx=2048, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert budget * 0.95 < report.bytes <= budget + 8 * 32  # the alignment of buffers is not counted
    assert report.fixed_bytes > 10_000


def test_a_budget_pays_for_the_window(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(
        models["plain"], text, tmp_path / "plan.gguf", ratio=None, budget=300_000, n_ctx=2048, window=100
    )
    with Llama(str(models["plain"]), n_ctx=2048, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert report.bytes_window == 2 * 100 * (4 * 68 + 8)
    assert report.bytes <= 300_000 + 8 * 32
    with pytest.raises(
        MiniCacheError,
        match=r"cannot reach.*window of 100 tokens takes 0\.0534 MiB, and --window 0 leaves it out",
    ):
        made(models["plain"], text, tmp_path / "plan.gguf", ratio=None, budget=50_000, n_ctx=2048, window=100)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 1.9, 2.5])
def test_no_plan_is_worse_than_a_plain_cache_of_its_size(
    models: dict[str, Path], text: Path, tmp_path: Path, ratio: float
) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=ratio)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["ratio"] >= ratio
    if ratio <= 1.0:
        assert found["kl_measured"] == 0.0
    if ratio <= 1.88:
        assert found["kl_measured"] <= rows["q8_0"]["kl"] * 2


def test_a_ratio_out_of_reach_is_refused_with_the_best_one(
    models: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    with pytest.raises(MiniCacheError, match=r"cannot reach ratio 1000.*times smaller"):
        made(models["plain"], text, tmp_path / "plan.gguf", ratio=1000.0)

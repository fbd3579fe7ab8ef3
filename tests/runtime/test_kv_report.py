"""`Llama.kv_report()`, and the warning about layers that are too different."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError, MiniCacheWarning
from support import tiny_models
from support.llamas import SETTINGS


@pytest.mark.parametrize("retain", [0.0, 0.01, 0.05, 0.3, 0.4, 0.7, 1.0])
def test_the_budget_is_the_native_one(path: str, retain: float) -> None:
    with Llama(path, minicache=MiniCache(retain=retain), **SETTINGS) as llm:
        report = llm.kv_report()
    block = MiniCache(retain=retain).retain_block
    assert report.retained_max == (-(-256 // block) if block else 0)
    assert report.retain == pytest.approx(1 / block if block else 0)


@pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")
def test_the_report_adds_up(path: str) -> None:
    settings = MiniCache(start=2, retain=0.1, type_k="q8_0", type_v="q4_0")
    with Llama(path, minicache=settings, **SETTINGS) as llm:
        before = llm.kv_report()
        llm.eval(tiny_models.prompt(100))
        report = llm.kv_report()
    assert before.bytes == report.bytes  # nothing is allocated later
    assert report.bytes == (
        report.bytes_directions + report.bytes_magnitudes + report.bytes_pool + report.bytes_index
        + report.bytes_unmerged + report.fixed_bytes
    )  # fmt: skip
    assert report.bytes_f16 == 6 * 256 * 2 * 64 * 2
    assert report.bytes_directions == 2 * 256 * 64 * (34 + 18) / 32
    assert report.bytes_magnitudes == 2 * 256 * 4 * 2 * 2
    assert report.ratio == pytest.approx(report.bytes_f16 / (report.bytes - report.fixed_bytes))
    assert report.total_ratio == pytest.approx(report.bytes_f16 / report.bytes)
    assert report.bytes == sum(layer.bytes for layer in report.layers) + report.fixed_bytes
    assert report.pairs == [(2, 3), (4, 5)]
    assert [layer.kind for layer in report.layers] == ["plain"] * 2 + ["merged"] * 4
    assert [layer.group for layer in report.layers] == [None, None, (2, 3), (2, 3), (4, 5), (4, 5)]
    assert [layer.side for layer in report.layers] == [None, None, 0, 1, 0, 1]
    assert (before.retained, report.retained, report.retained_max) == (0, 20, 52)
    assert before.distance is None
    assert report.distance == pytest.approx(0.5, abs=0.1)
    assert report.layers[2].n_merged == 100


def test_the_report_reads_well(path: str) -> None:
    with Llama(path, minicache=MiniCache(type_k="q8_0"), **SETTINGS) as llm:
        report = llm.kv_report()
    text = str(report)
    assert "merged layers 3+4" in text
    assert f"ratio {report.ratio:.2f}" in text
    assert "as plain q8_0/f16" in text
    parsed = json.loads(report.to_json())
    assert parsed["bytes"] == report.bytes
    assert parsed["pairs"] == [[3, 4]]
    assert parsed["layers"][3]["kind"] == "merged"


@pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")
@pytest.mark.parametrize(("pool", "row"), [("f16", 128), ("q8_0", 68), ("cache", 36)])
def test_the_window_is_counted_once_whatever_the_context(path: str, pool: str, row: int) -> None:
    settings = MiniCache(start=2, retain=0.1, window=50, pool_type=pool, type_k="q4_0", type_v="q4_0")
    reports = []
    for n_ctx in (256, 1024):
        with Llama(path, minicache=settings, **{**SETTINGS, "n_ctx": n_ctx}) as llm:
            reports.append(llm.kv_report())
    without = replace(settings, window=0)
    with Llama(path, minicache=without, **SETTINGS) as llm:
        before = llm.kv_report()
    assert (before.window, before.bytes_window) == (0, 0)
    assert "window" not in str(before)
    for report in reports:
        assert (report.window, report.pool_type) == (50, pool)
        # K and V of both layers of two pairs, and the index
        assert report.bytes_window == 2 * 50 * (4 * row + 8)
        assert report.bytes == (
            report.bytes_directions + report.bytes_magnitudes + report.bytes_pool + report.bytes_index
            + report.bytes_unmerged + report.fixed_bytes
        )  # fmt: skip
        assert 0 <= report.fixed_bytes - report.bytes_window <= 32 * 20
        assert report.bytes == sum(layer.bytes for layer in report.layers) + report.fixed_bytes
        assert "the first 3 and the latest 47 tokens unmerged" in str(report)
        assert json.loads(report.to_json())["bytes_window"] == report.bytes_window
    report = reports[0]
    assert (report.bytes_pool, report.bytes_index) == (before.bytes_pool, before.bytes_index)
    assert report.ratio == pytest.approx(before.ratio)
    assert report.total_ratio < before.total_ratio


def test_a_window_alone_has_a_pool_type(path: str) -> None:
    with Llama(path, minicache=MiniCache(retain=0, window=20), **SETTINGS) as llm:
        report = llm.kv_report()
    assert (report.pool_type, report.retained_max, report.bytes_pool) == ("q8_0", 0, 0)
    assert report.bytes_window > 0


def test_a_closed_llama_has_no_report(path: str) -> None:
    with Llama(path, minicache=MiniCache(), **SETTINGS) as llm:
        assert llm.n_ctx() == 256
    with pytest.raises(MiniCacheError, match="closed"):
        llm.kv_report()
    llm.close()


def test_the_warning_is_measured_and_comes_once(path: str, parallel_path: str) -> None:
    with (
        Llama(path, minicache=MiniCache(), **SETTINGS) as llm,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        llm.eval(tiny_models.prompt(20))
        assert not caught  # too few tokens for a judgement
        llm.eval(tiny_models.prompt(20))
        llm.eval(tiny_models.prompt(20))
        assert [warning.category for warning in caught] == [MiniCacheWarning]
        assert f"{llm.kv_report().distance:.1f}" in str(caught[0].message)
    with Llama(parallel_path, minicache=MiniCache(), **SETTINGS) as llm, warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.eval(tiny_models.prompt(60))

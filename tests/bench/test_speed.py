"""How speeds are measured and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp import CacheSpec, MiniCache, MiniCacheError
from minicache_cpp.bench import speed
from minicache_cpp.bench.speed import measure, quartile_range
from minicache_cpp.bench.speed_table import table
from minicache_cpp.modelfile.gguf_file import read_gguf


def test_a_long_context_is_filled_less_often(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PREFILL_TOKENS", 1300)
    told: list[str] = []
    found = measure(read_gguf(model), [20, 600], [CacheSpec.parse("q4_0")], 1, 3, on_step=told.append)
    assert [row["prefill_reps"] for row in found["rows"]] == [3, 2]
    assert sum("context 600: filling, 1 of 2" in line for line in told) == 2  # chunks of 512 tokens
    assert "q4_0" in table(found)


def test_copies_fill_every_cache(model: Path) -> None:
    specs = [CacheSpec.parse(text) for text in ("f16", "q4_0", "slerp:type=q8_0", "average:type=f16")]
    found = measure(read_gguf(model), [40, 1300], specs, 1, 1, copies=True)
    assert found["fill"] == "copies"
    assert [row["prefill_tokens"] for row in found["rows"]] == [40] * 4 + [512] * 4
    assert all(row["decode_tps"] > 0 for row in found["rows"])
    assert "are copies of them" in table(found)


def test_a_failing_context_does_not_leave_others_behind(model: Path) -> None:
    specs = [
        CacheSpec.parse("f16"),
        CacheSpec.of(MiniCache(pairs=[(4, 5)])),
        CacheSpec.of(MiniCache(start=6)),
    ]
    with pytest.raises(MiniCacheError, match="0 to 5"):
        measure(read_gguf(model), [64], specs, 1, 1)


def test_the_spread_is_between_the_quartiles() -> None:
    assert quartile_range([1.0]) is None
    assert quartile_range([5.0, 1.0, 2.0, 3.0, 4.0]) == 2.0

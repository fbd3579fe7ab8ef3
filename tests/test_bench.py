"""`minicache bench`: what it measures and how it tells it, at sizes at which the figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models

from minicache_cpp import CacheSpec, MiniCache, MiniCacheError, bench
from minicache_cpp.bench import measure, quartile_range, table
from minicache_cpp.gguf_file import read_gguf

KEYS = {
    "case": str,
    "cache": str,
    "minicache": (str, type(None)),
    "n_kv": int,
    "batch": int,
    "ubatch": int,
    "kv_bytes": int,
    "prefill_tps": float,
    "prefill_iqr": (float, type(None)),
    "prefill_reps": int,
    "prefill_vs_plain": (float, type(None)),
    "decode_tps": float,
    "decode_iqr": (float, type(None)),
    "decode_reps": int,
    "decode_vs_plain": (float, type(None)),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.random_model().write(tmp_path_factory.mktemp("models") / "random.gguf")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minicache_cpp.bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_json_has_a_row_for_every_cache_and_context(model: Path) -> None:
    done = run(model, "--ctx", 600, "--ctx", 40, "--config", "q8_0", "--config", "slerp:type=q8_0",
               "--config", "slerp:type=f16", "--threads", 1, "--reps", 3, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["threads"], found["reps"]) == (1, 3)
    assert found["device"]
    merged = MiniCache(type_k="q8_0", type_v="q8_0").spec()
    caches = [("q8_0", None), ("q8_0", merged), ("f16", MiniCache().spec())]
    rows = found["rows"]
    assert [(row["cache"], row["minicache"]) for row in rows] == caches * 2
    assert [row["n_kv"] for row in rows] == [40] * 3 + [600] * 3
    for row in rows:
        assert row.keys() == KEYS.keys()
        assert all(isinstance(row[key], kind) for key, kind in KEYS.items())
        assert row["prefill_tps"] > 0 < row["decode_tps"]
        assert row["decode_reps"] == 3
    assert [row["decode_vs_plain"] is None for row in rows] == [False, False, True] * 2
    assert rows[0]["decode_vs_plain"] == 1
    assert rows[1]["kv_bytes"] < rows[0]["kv_bytes"]
    assert "decoding, 3 of 3" in done.stderr  # progress, beside the object


def test_a_long_context_is_filled_less_often(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PREFILL_TOKENS", 1300)
    told: list[str] = []
    found = measure(read_gguf(model), [20, 600], [CacheSpec.parse("q4_0")], 1, 3, on_progress=told.append)
    assert [row["prefill_reps"] for row in found["rows"]] == [3, 2]
    assert sum("context 600: filling, 1 of 2" in line for line in told) == 2  # chunks of 512 tokens
    assert "q4_0" in table(found)


def test_what_cant_be_measured_is_told(model: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ([tmp_path / "none.gguf"], "does not exist"),
        ([model, "--ctx", 0], "1 or more"),
        ([model, "--reps", 0], "1 or more"),
        ([model, "--config", "q3"], "no cache setting"),
        ([model, "--ctx", 64, "--threads", 1, "--config", "slerp:start=9"], "0 to 5"),
        ([model, "--ctx", 2000000000], "smaller --ctx"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


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

"""`minicache bench`: what it measures and reports. The sizes are too small for the figures to mean anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minicache_cpp import MiniCache
from minicache_cpp.bench import ops_table
from minicache_cpp.bench.ops import KEEPING, KINDS
from minicache_cpp.cli import main
from support.odd_names import ODD_NAMES, oddly_named

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
    "prefill_tokens": int,
    "prefill_vs_plain": (float, type(None)),
    "decode_tps": float,
    "decode_iqr": (float, type(None)),
    "decode_reps": int,
    "decode_vs_plain": (float, type(None)),
}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minicache_cpp.bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@ODD_NAMES
def test_a_model_whose_name_is_not_utf_8(model: Path, tmp_path: Path) -> None:
    done = run(
        oddly_named(model, tmp_path), "--ctx", 16, "--config", "q8_0", "--threads", 1, "--reps", 1, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"][0]["cache"] == "q8_0"


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
    assert "decoding, 3 of 3" in done.stderr  # progress goes to stderr, the object to stdout


def test_ops_are_reported_by_kind(model: Path) -> None:
    done = run(model, "--ops", "--ctx", 700, "--fill", "copies", "--config", "f16", "--config", "slerp:type=q4_0",
               "--threads", 1, "--reps", 1, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["cache"], row["phase"], row["tokens"]) for row in rows] == [
        ("f16", "prefill", 512), ("f16", "decode", 1), ("q4_0", "prefill", 512), ("q4_0", "decode", 1)
    ]  # fmt: skip
    for row in rows:
        shares = row["shares"]
        assert list(shares) == list(KINDS)
        assert sum(shares.values()) == pytest.approx(1)
        assert row["keeping"] == pytest.approx(sum(shares[kind] for kind in KEEPING))
        assert shares["attention"] > 0.05 and shares["matrices"] > 0.05
        # a plain cache has none of these ops, SLERP has all but those of codes
        assert (row["keeping"] > 0) == (row["minicache"] is not None)
        assert shares["encode"] == 0
        assert row["seconds"] > 0 and row["start_us"] >= 0
    text = ops_table.table(json.loads(done.stdout))
    assert "context 700, prefill of 512" in text and "keeping" in text


def test_ops_are_those_of_the_cpu(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(model), "--ops", "--gpu-layers", "2"]) == 2
    assert "--ops measures on the CPU" in capsys.readouterr().err


def test_impossible_measurements_are_refused(model: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ([tmp_path / "none.gguf"], "does not exist"),
        ([model, "--ctx", 0], "1 or more"),
        ([model, "--reps", 0], "1 or more"),
        ([model, "--config", "q3"], "not a cache"),
        ([model, "--ctx", 64, "--threads", 1, "--config", "slerp:start=9"], "0 to 5"),
        ([model, "--ctx", 2000000000], "smaller --ctx"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1

"""`minicache bench`: what it measures and how it tells it, at sizes at which the figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models

from minicache_cpp import CacheSpec, MiniCache, MiniCacheError
from minicache_cpp.bench import ops, ops_table, speed
from minicache_cpp.bench.ops import KEEPING, KINDS, Sample
from minicache_cpp.bench.speed import measure, quartile_range
from minicache_cpp.bench.speed_table import table
from minicache_cpp.cli import main
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.binding import llama_h
from minicache_cpp.reading.context import SequenceContext
from minicache_cpp.reading.model import NativeModel

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
    monkeypatch.setattr(speed, "PREFILL_TOKENS", 1300)
    told: list[str] = []
    found = measure(read_gguf(model), [20, 600], [CacheSpec.parse("q4_0")], 1, 3, on_step=told.append)
    assert [row["prefill_reps"] for row in found["rows"]] == [3, 2]
    assert sum("context 600: filling, 1 of 2" in line for line in told) == 2  # chunks of 512 tokens
    assert "q4_0" in table(found)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """K and V of a single layer depend on a token and its position, and on nothing before it."""
    path = tmp_path_factory.mktemp("models") / "one.gguf"
    return tiny_models.random_model(n_layer=1).write(path)


def logits(context: SequenceContext) -> np.ndarray:  # type: ignore[type-arg]
    return np.ctypeslib.as_array(llama_h.llama_get_logits(context.ctx), (context.n_vocab,)).copy()


# f16 keeps what was turned to its new position with an error of 1/2048, q8_0 of 1/254 of the largest number
@pytest.mark.parametrize(("cache", "bound"), [("f16", 2e-3), ("q8_0", 2e-2)])
@pytest.mark.parametrize("n_kv", [2 * tiny_models.N_VOCAB, 2 * tiny_models.N_VOCAB + 100])
def test_copies_are_what_a_prompt_that_repeats_itself_gives(
    one_layer: Path, cache: str, bound: float, n_kv: int
) -> None:
    period = tiny_models.N_VOCAB  # after so many tokens evaluate() has the same ones again
    found = []
    with NativeModel(one_layer) as model:
        for copies in (False, True):
            context = SequenceContext(model, CacheSpec.parse(cache), n_kv + 1, 1024, 1, copies)
            try:
                context.evaluate(0, period if copies else n_kv)
                if copies:
                    before = logits(context)
                    context.fill_by_copies(period, n_kv)
                    assert llama_h.llama_memory_seq_pos_max(context.memory, 0) == n_kv - 1
                    assert llama_h.llama_memory_seq_pos_max(context.memory, 1) == -1
                context.evaluate(n_kv, 1)
                found.append(logits(context))
            finally:
                context.close()
    expected, copied = found
    scale = np.linalg.norm(expected)
    assert np.linalg.norm(copied - expected) < bound * scale
    assert np.linalg.norm(before - expected) > 10 * bound * scale


def test_copies_fill_every_cache(model: Path) -> None:
    specs = [CacheSpec.parse(text) for text in ("f16", "q4_0", "slerp:type=q8_0", "average:type=f16")]
    found = measure(read_gguf(model), [40, 1300], specs, 1, 1, copies=True)
    assert found["fill"] == "copies"
    assert [row["prefill_tokens"] for row in found["rows"]] == [40] * 4 + [512] * 4
    assert all(row["decode_tps"] > 0 for row in found["rows"])
    assert "are copies of them" in table(found)


def test_ops_are_told_by_kind(model: Path) -> None:
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
        # a plain cache has none of it, SLERP has all but codes
        assert (row["keeping"] > 0) == (row["minicache"] is not None)
        assert shares["encode"] == 0
        assert row["seconds"] > 0 and row["start_us"] >= 0
    text = ops_table.table(json.loads(done.stdout))
    assert "context 700, prefill of 512" in text and "keeping" in text


def test_what_starting_nodes_takes_is_left_out() -> None:
    nodes = dict.fromkeys(KINDS, 0) | {"attention": 2, "merge": 1, "rest": 7}
    seconds = dict.fromkeys(KINDS, 0.0) | {"attention": 8e-3, "merge": 1e-3, "rest": 3e-3}
    sample = Sample(10e-3, seconds, nodes)  # 2 ms more node by node, of 10 nodes
    assert sample.start == pytest.approx(0.2e-3)
    row = ops.row(CacheSpec.parse("f16"), 64, "decode", 1, sample, sample.start)
    assert row["shares"]["attention"] == pytest.approx(7.6 / 10)
    assert row["keeping"] == pytest.approx(0.8 / 10)
    # never more than the quickest nodes take, nor less than nothing
    assert Sample(1e-3, seconds, nodes).start == pytest.approx(3e-3 / 7)
    assert Sample(99.0, seconds, nodes).start == 0


def test_ops_are_those_of_the_cpu(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(model), "--ops", "--gpu-layers", "2"]) == 2
    assert "--ops measures on the CPU" in capsys.readouterr().err


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

"""`minicache evaluate`: its measurements are compared with others made here, on tiny models."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import CacheSpec, Llama, MiniCacheError, cli
from minicache_cpp.evaluate import evaluation
from minicache_cpp.evaluate.table import to_json
from minicache_cpp.host.units import digits
from minicache_cpp.native.binding import llama_h
from minicache_cpp.reading.divergence import Reference, kl_divergence, log_probabilities
from minicache_cpp.reading.model import NativeModel
from minicache_cpp.reading.scored_context import ScoredContext
from minicache_cpp.text.vocabulary import Vocabulary
from support import contexts
from support.disks import LIMITS, files_of_at_most
from support.family_models import FAMILIES
from support.odd_names import ODD_NAMES

KEYS = {
    "name": str,
    "bytes": int,
    "fixed_bytes": int,
    "bytes_per_token": float,
    "ratio": float,
    "total_ratio": float,
    "ppl": float,
    "kl_mean": float,
    "kl_p99": float,
    "kl_p999": float,
    "kl_median": float,
    "kl_floor": float,
    "kl_excess": float,
    "kl_by_position": dict,
    "ppl_stderr": float,
    "ppl_ratio": float,
    "ppl_ratio_stderr": float,
    "top1": float,
}

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def found(model: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> dict[str, Any]:
        given = ["evaluate", model, "--text", text, "--threads", 1, "--json", *arguments]
        assert cli.main(list(map(str, given))) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_json_has_the_keys_that_others_rely_on(found: Run) -> None:
    result = found("--ctx", 300, "--chunks", 2, "--config", "q8_0", "--config", "slerp")
    assert (result["context"], result["tokens"], result["chunks"]) == (300, 300, 2)
    assert (result["ubatch"], result["pos_offset"]) == (1, 0)
    assert "runs" not in result
    assert [row["name"] for row in result["rows"]] == ["f16", "q8_0", CacheSpec.parse("slerp").name]
    for row in result["rows"]:
        assert all(isinstance(row[key], kind) for key, kind in KEYS.items())


def test_more_loss_shows_as_more_divergence_above_a_floor_of_nothing(found: Run) -> None:
    rows = found("--ctx", 256, "--chunks", 2, "--config", "q8_0", "--config", "q4_0")["rows"]
    floor, q8_0, q4_0 = rows
    assert abs(floor["kl_mean"]) < 1e-9 and floor["kl_max"] < 1e-9 and floor["top1"] == 1
    assert 0 < 10 * q8_0["kl_mean"] < q4_0["kl_mean"]
    assert q8_0["kl_mean"] < q8_0["kl_p99"] <= q8_0["kl_max"]
    assert q4_0["top1"] < 1 and q4_0["ppl"] != floor["ppl"]


def test_the_bytes_are_those_of_a_llama_of_this_context(found: Run, model: Path) -> None:
    for row in found("--ctx", 700, "--chunks", 1, "--config", "slerp:type=q8_0")["rows"]:
        spec = CacheSpec.parse(row["name"])
        with Llama(str(model), n_ctx=700, minicache=spec.minicache, verbose=False) as llm:
            report = llm.kv_report()
        assert (row["bytes"], row["fixed_bytes"]) == (report.bytes, report.fixed_bytes)
        assert (row["ratio"], row["total_ratio"]) == (report.ratio, report.total_ratio)
        assert row["bytes_per_token"] * report.n_cells == report.bytes - report.fixed_bytes
        assert row["bits_per_value"] == pytest.approx(16 * report.bytes / report.bytes_f16, rel=1e-3)


def test_the_numbers_are_those_of_other_contexts(found: Run, model: Path, text: Path) -> None:
    # the same without the command: f16 and q4_0 read one chunk from position 500 on
    row = found("--ctx", 200, "--chunks", 1, "--pos-offset", 500, "--ubatch", 64, "--config", "q4_0")["rows"][
        1
    ]
    with Vocabulary(model) as vocabulary:
        tokens = vocabulary.begun(vocabulary.tokenize(text.read_text()))[:200]
    loaded = contexts.Model(model)
    logs = []
    for name in ("f16", "q4_0"):
        with contexts.Context(loaded, type_k=name, type_v=name, n_ctx=256, n_ubatch=64) as context:
            logits = contexts.repeated(context.decode, contexts.run(tokens, first=500), 64).astype(np.float64)
            assert context.positions(0) == (500, 699)
            logs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    full, ours = (one[100:] for one in logs)
    kl = (np.exp(full) * (full - ours)).sum(axis=1)
    assert row["kl_mean"] == pytest.approx(kl.mean(), rel=1e-3)
    assert row["kl_max"] == pytest.approx(kl.max(), rel=1e-3)
    assert row["top1"] == (full.argmax(axis=1) == ours.argmax(axis=1)).mean()
    assert row["ppl"] == pytest.approx(np.exp(-ours[np.arange(99), tokens[101:]].mean()), rel=1e-4)


def test_the_floor_is_what_f16_costs_without_flash_attention(found: Run, model: Path, text: Path) -> None:
    result = found("--ctx", 100, "--chunks", 1, "--score", "all", "--config", "q8_0")
    f16, q8_0 = result["rows"]
    with Vocabulary(model) as vocabulary:
        tokens = vocabulary.begun(vocabulary.tokenize(text.read_text()))[:100]
    logs = []
    with NativeModel(model) as loaded:
        for flash_attention in (True, False):
            with ScoredContext(
                loaded, CacheSpec.parse("f16"), 100, 1, 1, flash_attention=flash_attention
            ) as context:
                rows = [log_probabilities(logits).copy() for _, logits in context.decode(tokens, 0, 0)]
                logs.append(np.concatenate(rows))
    kl = kl_divergence(*logs)
    assert result["floor"]["kl_mean"] == f16["kl_floor"] == q8_0["kl_floor"] == pytest.approx(kl.mean())
    assert result["floor"]["kl_max"] == pytest.approx(kl.max())
    # in float32 weights, the floor is far below what q8_0 costs
    assert 0 < result["floor"]["kl_mean"] < q8_0["kl_mean"] / 10
    assert q8_0["kl_excess"] == pytest.approx(q8_0["kl_mean"] - kl.mean())


def test_all_tokens_are_scored_where_asked(found: Run) -> None:
    arguments = ("--ctx", 600, "--chunks", 1, "--ubatch", 50, "--config", "slerp")
    half, whole = found(*arguments), found(*arguments, "--score", "all")
    assert (half["tokens"], half["score"]) == (300, "second-half")
    assert (whole["tokens"], whole["score"]) == (600, "all")
    counts = {key: one["tokens"] for key, one in whole["rows"][1]["kl_by_position"].items()}
    assert counts == {"0-256": 256, "256-512": 256, "512-1024": 88}
    buckets = half["rows"][1]["kl_by_position"]
    assert {key: one["tokens"] for key, one in buckets.items()} == {"256-512": 212, "512-1024": 88}
    assert buckets["512-1024"] == whole["rows"][1]["kl_by_position"]["512-1024"]


def test_positions_are_shifted_in_every_context(found: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    decode = ScoredContext.decode

    def watched(self: ScoredContext, tokens: Sequence[int], position: int, scored_from: int) -> Any:
        yield from decode(self, tokens, position, scored_from)
        last = llama_h.llama_memory_seq_pos_max(self.memory, 0)
        seen.add((llama_h.llama_memory_seq_pos_min(self.memory, 0), last - position - len(tokens) + 1))

    monkeypatch.setattr(ScoredContext, "decode", watched)
    found("--ctx", 64, "--chunks", 1, "--pos-offset", 1000, "--config", "slerp")
    assert seen == {(1000, 0)}


def test_several_contexts_and_positions_are_runs_of_one_object(found: Run) -> None:
    result = found("--ctx", 64, "--ctx", 128, "--pos-offset", 0, "--pos-offset", 900,
                   "--chunks", 1, "--config", "q8_0")  # fmt: skip
    runs = result.pop("runs")
    assert [(run["context"], run["pos_offset"]) for run in runs] == [(64, 0), (64, 900), (128, 0), (128, 900)]
    assert runs[0] == result


def test_several_contexts_and_positions_are_one_table(
    model: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", model, "--text", text, "--threads", 1, "--chunks", 1, "--config", "q8_0",
             "--ctx", 64, "--ctx", 128, "--pos-offset", 0, "--pos-offset", 900]  # fmt: skip
    assert cli.main(list(map(str, given))) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [at for at, line in enumerate(lines) if line.startswith("cache")]
    assert [lines[at].split()[-1] for at in heads] == ["top-1", "±", "256"]
    for first, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        rows = [line.split() for line in lines[first:end] if line.startswith(("f16 ", "q8_0 "))]
        assert [row[:3] for row in rows] == [
            [name, context, offset]
            for context in ("64", "128")
            for offset in ("0", "900")
            for name in ("f16", "q8_0")
        ]
        assert all(len(line) <= 120 for line in lines[first:end])


def test_decode_is_the_default(found: Run) -> None:
    """Tokens are read one at a time, so all others come from the cache and the cost of merging shows."""
    arguments = ("--ctx", 128, "--chunks", 1, "--config", "slerp")
    rows = found(*arguments)["rows"]
    assert rows == found(*arguments, "--ubatch", 1)["rows"]
    assert rows[1]["kl_mean"] > found(*arguments, "--ubatch", 64)["rows"][1]["kl_mean"]


def test_current_tokens_are_exact_so_the_ubatch_matters(found: Run) -> None:
    arguments = ("--ctx", 128, "--chunks", 1, "--config", "slerp")
    assert found(*arguments, "--ubatch", 32)["rows"][1]["kl_mean"] > 1e-3
    assert found(*arguments, "--ubatch", 128)["rows"][1]["kl_mean"] < 1e-6


def test_a_cache_that_is_not_merged_is_noted(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = FAMILIES["deepseek2"].write(tmp_path / "latent.gguf")
    arguments = ["--ctx", "64", "--chunks", "1", "--threads", "1", "--config", "slerp"]
    assert cli.main(["evaluate", str(model), "--text", str(text), *arguments]) == 0
    out = capsys.readouterr().out
    assert "read one token at a time, as in decode" in out
    assert "note: slerp:start=0.5" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--ctx", 4096], "too few for 1 x 4096 tokens"),
        (["--ctx", 900, "--chunks", 3], "too few for 3 x 900 tokens"),
        (["--ctx", 0], "--ctx 0: it must be 8 or more"),
        (["--pos-offset", -1], "--pos-offset -1"),
        (["--ubatch", 0], "--ubatch 0"),
        (["--ctx", 5_000_000_000], "--ctx 5000000000: it must be 2147483647 or less"),
        (["--ctx", 64, "--pos-offset", 2**31 - 10], "the last position 2147483701: it must be"),
        (["--gpu-layers", -2], "--gpu-layers -2: it must be -1 or more"),
        (["--ctx", 64, "--config", "q3_9"], "not a cache"),
        (["--ctx", 64, "--plot", "kl.nothing"], "must end with"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    model: Path,
    text: Path,
    arguments: list[object],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    monkeypatch.setattr(evaluation, "NativeModel", lambda *_: pytest.fail("the weights were loaded"))
    given = ["evaluate", model, *arguments] + (["--text", text] if "--text" not in arguments else [])
    assert cli.main(list(map(str, given))) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_positions_beyond_the_training_are_warned_of(
    model: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ctx", "64", "--chunks", "1", "--pos-offset", "5000", "--config", "f16"]
    assert cli.main(["evaluate", str(model), "--text", str(text), *arguments]) == 0
    assert "positions 5000 to 5063 go beyond the 4096" in capsys.readouterr().err


def test_a_full_disk_is_reported_in_advance(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Reference, "size", lambda *_: 1 << 60)
    assert cli.main(["evaluate", str(model), "--text", str(text), "--ctx", "64"]) == 2
    assert "on disk" in capsys.readouterr().err


def test_a_plot_needs_matplotlib(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["evaluate", str(model), "--plot", str(tmp_path / "kl.png")]) == 2
    assert "minicache-cpp[plot]" in capsys.readouterr().err


def test_a_plot_is_drawn(found: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "kl.svg"
    found("--ctx", 64, "--ctx", 96, "--chunks", 1, "--config", "q4_0", "--config", "slerp",
          "--plot", path)  # fmt: skip
    drawn = path.read_text()
    assert "<svg" in drawn and drawn.count("q4_0") >= 2


@pytest.mark.parametrize(
    "name",
    [pytest.param("odd\udcff.gguf", marks=ODD_NAMES, id="odd"), pytest.param("a$b$c{.gguf", id="formula")],
)
def test_names_of_models_in_plots(model: Path, text: Path, tmp_path: Path, name: str) -> None:
    """They may be no text, or contain what matplotlib would take for a formula that is wrong."""
    pytest.importorskip("matplotlib")
    (tmp_path / name).symlink_to(model)
    words = ["--ctx", "16", "--chunks", "1", "--threads", "1", "--config", "q8_0", "--text", str(text)]
    for suffix in ("svg", "png"):
        path = tmp_path / f"kl.{suffix}"
        command = [
            sys.executable,
            "-m",
            "minicache_cpp",
            "evaluate",
            str(tmp_path / name),
            *words,
            "--plot",
            str(path),
        ]
        # the table names the model, in bytes that the captured output of this process could not be decoded from
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert path.stat().st_size > 1000
    assert name.replace("\udcff", "?") in (tmp_path / "kl.svg").read_text()


@LIMITS
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "jpg"])
def test_a_plot_that_finds_no_room_leaves_the_old_one(found: Run, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    from minicache_cpp.evaluate.plot import plot

    path = tmp_path / f"kl.{suffix}"
    runs = [found("--ctx", 64, "--chunks", 1, "--config", "q8_0", "--plot", path)]
    old = path.read_bytes()
    with (
        files_of_at_most(1000),
        pytest.raises(MiniCacheError, match=r"kl\.... cannot be written: File too large"),
    ):
        plot(path, runs)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_plot_replaces_nothing_but_a_plot(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from minicache_cpp.evaluate.plot import check_plot

    path = tmp_path / "kl.png"
    path.write_bytes(model.read_bytes())
    assert cli.main(["evaluate", str(model), "--plot", str(path)]) == 2
    assert "kl.png is there already and is not a PNG image" in capsys.readouterr().err
    assert path.read_bytes() == model.read_bytes()
    for name, content in (("kl.png", b"\x89PNG\r\n"), ("kl.SVG", b"<?xml version="), ("kl.pdf", b"%PDF-1.4")):
        (tmp_path / name).write_bytes(content)
        check_plot(tmp_path / name)


def test_json_has_no_nan() -> None:
    assert json.loads(to_json([{"rows": [{"kl_mean": float("nan"), "ppl": float("inf")}]}])) == {
        "rows": [{"kl_mean": None, "ppl": None}]
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.000012345, "0.0000123"),
        (0.5, "0.500"),
        (12.345, "12.3"),
        (4321.0, "4321"),
        (float("nan"), "nan"),
    ],
)
def test_small_numbers_keep_their_first_digits(value: float, shown: str) -> None:
    assert digits(value) == shown

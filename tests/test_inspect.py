"""`minicache inspect`: its table and notes, and files that it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minicache_cpp import Llama, MiniCacheError, cli, inspect
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile.gguf_file import read_gguf
from support.family_models import FAMILIES
from support.gguf_files import keys_only


@pytest.mark.parametrize("name", ["gemma2", "gemma4", "qwen35", "falcon-h1"])
def test_a_mixed_model_is_sized_by_what_grows_and_what_does_not(tmp_path: Path, name: str) -> None:
    model = FAMILIES[name].write(tmp_path / "mixed.gguf")
    specs = ["f16", "q8_0", "slerp:start=0"]
    found = inspect_model(str(model), 700, specs)
    if len(FAMILIES[name].grows) < FAMILIES[name].shape.n_layer:
        assert "grows with the context" in found["notes"][0]
    for spec, row in zip(specs, found["rows"], strict=True):
        with Llama(str(model), n_ctx=700, verbose=False, minicache=spec) as llm:
            report = llm.kv_report()
        assert report.active == (row["groups"] > 0)
        assert report.bytes == row["bytes"]
        assert report.ratio == pytest.approx(row["ratio"], rel=1e-3)
        assert report.total_ratio == pytest.approx(row["total_ratio"])


def test_the_command_prints_a_table_and_json(model: Path) -> None:
    for command in (["-m", "minicache_cpp", "inspect"], ["-m", "minicache_cpp.inspect"]):
        done = run(*command, str(model), "--ctx", "2048")
        assert done.returncode == 0, done.stderr
        assert "6 layers, 4 heads, 2 KV heads, head size 32, trained for 4096 tokens" in done.stdout
        assert "slerp:start=0.5,t=0.6,retain=0.05,type=q4_0" in done.stdout
    found = json.loads(run("-m", "minicache_cpp", "inspect", str(model), "--json").stdout)
    assert (found["architecture"], found["layers"]) == ("llama", 6)
    assert (found["kv_heads"], found["context"]) == (2, 4096)
    ratios = {row["name"]: row["ratio"] for row in found["rows"]}
    assert ratios["q8_0"] == pytest.approx(32 / 17)
    assert ratios["q4_0"] == pytest.approx(32 / 9)


def test_the_longest_context(smollm2: Path) -> None:
    found = inspect_model(smollm2, 2**31 - 1)
    assert found["rows"][-1]["name"].endswith("-5.gguf")
    for n_ctx, words in ((5_000_000_000, "it must be 2147483647 or less"), (-1, "it must be 0 or more")):
        with pytest.raises(MiniCacheError, match=f"--ctx {n_ctx}: {words}"):
            inspect_model(smollm2, n_ctx)


@pytest.mark.parametrize(("name", "words"), [("deepseek2", "latent"), ("mamba", "recurrent")])
def test_models_without_a_plain_cache_are_noted(tmp_path: Path, name: str, words: str) -> None:
    found = inspect_model(str(FAMILIES[name].write(tmp_path / "other.gguf")), 256)
    assert words in found["notes"][0]
    assert not found["rows"]


def test_heads_that_a_type_cannot_hold_are_noted(tmp_path: Path) -> None:
    path = keys_only(tmp_path / "heads.gguf", {"attention.key_length": 40, "attention.value_length": 40})
    found = inspect_model(str(path), 256, ["f16", "q4_0"])
    assert [row["name"] for row in found["rows"]] == ["f16"]
    assert "multiple of 32" in found["notes"][0]


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(model: Path, tmp_path: Path, part: float) -> None:
    data = model.read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(data[: int(len(data) * part)] or b"GGUF")
    done = run("-m", "minicache_cpp", "inspect", str(path)) if part == 0.5 else None
    if done:
        assert (done.returncode, done.stdout) == (2, "")
        assert "truncated" in done.stderr
        assert done.stderr.count("\n") == 1
    with pytest.raises(MiniCacheError, match="truncated"):
        read_gguf(path)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


def test_too_little_memory_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: object) -> int:
        raise MemoryError

    monkeypatch.setattr(inspect, "run", run)
    assert cli.main(["inspect", "model.gguf"]) == 2
    assert capsys.readouterr().err == "minicache: there is not enough memory for this\n"

"""`minicache calibrate` from the command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import CancelledError, MiniCacheError, calibrate_model
from minicache_cpp.cache.plan import Plan
from minicache_cpp.cache.plan_file import PlanFile, write_plan
from minicache_cpp.cache.plan_store import plan_beside, plan_path
from minicache_cpp.calibrate.command import note_earlier_plan
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from support.calibrations import made
from support.odd_names import ODD_NAMES, oddly_named


def run(*arguments: object, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minicache_cpp.calibrate", "--threads", "1", *map(str, arguments)]
    env = os.environ | ({"MINICACHE_CACHE_DIR": str(cache)} if cache else {})
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False, env=env)


def test_the_command_writes_where_auto_looks(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    arguments = [models["plain"], "--text", text, "--tokens", 1024, "--ratio", 6, "--rope-block", 32]
    done = run(*arguments, "--json", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plan"] == str(tmp_path / "plans" / f"{found['fingerprint']}.gguf")
    assert found["rope_block"] == 32
    assert "measuring" in done.stderr
    assert [one.name for one in tmp_path.iterdir() if list(one.iterdir())] == ["plans"]
    done = run(*arguments, "-o", tmp_path / "here.gguf", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "here.gguf") in done.stdout
    assert (tmp_path / "here.gguf").read_bytes() == Path(found["plan"]).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none.gguf"], "does not exist"),
        (["{model}", "--ratio", "0.5"], "1 or more"),
        (["{model}", "--ratio", "nan"], "1 or more"),
        (["{model}", "--max-kl", "0"], "more than 0"),
        (["{model}", "--threads", "100000"], "from 0 to 512"),
        (["{model}", "--budget", "many", "--ctx", "100"], "512MiB"),
        (["{model}", "--budget", "1MiB"], "--budget needs --ctx"),
        (["{model}", "--ctx", "100"], "goes with --budget or --max-kl"),
        (["{model}", "--budget", "1KiB", "--ctx", "4096"], "cannot reach"),
        (["{model}", "--rope-block", "2000"], "0 to 1024"),
        (["{model}", "--window", "-1"], "0 to 65536"),
        (["{model}", "--tokens", "200"], "with --window 64"),
        (["{model}", "--tokens", "5"], "from 128"),
        (["{model}", "--tokens", "0"], "from 128"),
        (["{model}", "--threads", "-1"], "--threads"),
        (["{model}", "--text", "{tmp}/none.txt"], "none.txt does not exist"),
        (["{model}", "--text", "{tmp}"], "is a directory"),
        (["{model}", "-o", "{tmp}/none/plan.gguf"], "folder that exists"),
        (["{model}", "-o", "{tmp}"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    models: dict[str, Path], tmp_path: Path, arguments: list[str], words: str
) -> None:
    names = {"{tmp}": str(tmp_path), "{model}": str(models["plain"])}
    for name, path in names.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    done = run(*arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("calibrate: ")]
    assert len(lines) == 1, done.stderr
    assert words in lines[0]


@ODD_NAMES
@pytest.mark.parametrize("mode", [[], ["--mode", "aligned", "--start", 0]], ids=["code", "aligned"])
def test_names_that_are_not_utf_8(
    models: dict[str, Path], text: Path, tmp_path: Path, mode: list[object]
) -> None:
    model, read, plan = (
        oddly_named(models["plain"], tmp_path),
        oddly_named(text, tmp_path),
        tmp_path / "p\udcff.gguf",
    )
    done = run(model, "--text", read, "--tokens", 1024, "-o", plan, "--json", *mode)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"] == str(plan)
    assert PlanFile.open(plan).plan.text.startswith("odd?.txt")


def test_targets_exclude_each_other(models: dict[str, Path]) -> None:
    assert run(models["plain"], "--ratio", 5, "--max-kl", 0.1).returncode == 2


def test_a_plan_that_comes_before_the_one_written_is_named(
    models: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    file = read_gguf(shutil.copy(models["plain"], tmp_path / "model.gguf"))
    plan = Plan(fingerprint(file), len(model_shape(file).layers))
    write_plan(plan_path(file), plan, {})
    note_earlier_plan(file)
    assert capsys.readouterr().err == ""
    write_plan(plan_beside(file), plan, {})
    note_earlier_plan(file)
    assert f"finds {plan_beside(file)} first" in capsys.readouterr().err


def test_a_program_calibrates_without_a_word(
    models: dict[str, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[float] = []
    found = calibrate_model(
        models["plain"],
        tmp_path / "plan.gguf",
        on_progress=lambda fraction, stage, detail: seen.append(fraction),
        texts=(text,),
        tokens=1024,
    )
    assert found["target"] == "ratio 5"
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] > 0.9
    assert capfd.readouterr() == ("", "")
    with pytest.raises(CancelledError, match="cancelled"):
        calibrate_model(models["plain"], tmp_path / "other.gguf", on_progress=lambda *_: False)
    assert not (tmp_path / "other.gguf").exists()
    with pytest.raises(MiniCacheError, match=r"unknown.*speed"):
        calibrate_model(models["plain"], speed=3)


@pytest.mark.parametrize("name", ["model", "text"])
def test_only_a_plan_is_replaced(
    models: dict[str, Path], text: Path, tmp_path: Path, found: dict[str, Any], name: str
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(models["plain"].read_bytes())
    output = model if name == "model" else tmp_path / "notes.txt"
    (tmp_path / "notes.txt").write_text("mine")
    before = output.read_bytes()
    with pytest.raises(MiniCacheError, match="is there already and is not a plan"):
        made(model, text, output)
    assert output.read_bytes() == before
    plan = tmp_path / "plan.gguf"
    plan.write_bytes(Path(found["plan"]).read_bytes())
    assert made(model, text, plan, ratio=6.0)["rows"][0]["ratio"] >= 6.0

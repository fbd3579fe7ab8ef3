"""`minicache chat` from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from minicache_cpp import MiniCache
from support import tiny_models

CACHE = "slerp:type=q8_0"


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command on one thread, so that the answers are always the same."""
    command = [sys.executable, "-m", "minicache_cpp.chat", "--threads", "1", *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


def notes(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The notes beside the answers. Anything else on stderr would be llama.cpp's log or a traceback."""
    lines = done.stderr.splitlines()
    assert all(line.startswith("[") and line.endswith("]") for line in lines), done.stderr
    return [line[1:-1] for line in lines]


def test_one_question_one_answer(models: dict[str, Path]) -> None:
    arguments = ["--prompt", "hello", "--max-tokens", 12, "--seed", 3, "--ctx", 300, "--config", "slerp"]
    done = run(models["chat"], *arguments)
    assert done.returncode == 0
    assert done.stdout.strip()
    said = notes(done)
    assert "mean distance of 0.5" in said[0]  # the paper's settings do not suit this model
    assert said[-1].startswith("KV ")
    assert "of 512" in said[-1]  # llama.cpp rounds contexts up to multiples of 256
    assert "ratio 1.18" in said[-1]
    again = run(models["chat"], *arguments)
    assert again.stdout == done.stdout


def test_a_plain_cache_for_comparison(models: dict[str, Path]) -> None:
    for arguments, ratio in ((["--no-minicache"], "ratio 1.00"), (["--config", "q4_0"], "ratio 3.56")):
        said = notes(run(models["chat"], "--prompt", "hello", "--max-tokens", 4, *arguments))
        assert len(said) == 1
        assert ratio in said[0]


def test_piped_messages_and_commands(models: dict[str, Path], tmp_path: Path) -> None:
    saved = tmp_path / "chat.saved"
    lines = ["hello", "/memory", f"/save {saved}", "again", "/reset", f"/load {saved}", "again", "/save", "/load",
             "/load /nowhere", "/nonsense", "/help", "/quit", "not read any more"]  # fmt: skip
    done = run(models["chat"], "--max-tokens", 8, "--temp", 0, "--config", CACHE, stdin="\n".join(lines))
    # as some could not be obeyed
    assert done.returncode == 2
    said = notes(done)
    assert sum(line.startswith("KV ") for line in said) == 3
    for words in ("saved", "is empty", "messages", "/save FILE", "/load FILE", "/nowhere", "/nonsense is no"):
        assert any(words in line for line in said), words
    assert "merged layers 3+4" in done.stdout
    assert "/load FILE" in done.stdout
    used = [line.split("context ")[1].split()[0] for line in said if line.startswith("KV ")]
    assert used[1] == used[2]  # the second "again" continued from the file


def test_a_tilde_is_the_home_folder(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    lines = ["hello", "/save ~/chat.saved", "/load ~/chat.saved", "/save ~nobody-of-this-name/x", "again"]
    done = run(models["chat"], "--calibrate", "never", "--max-tokens", 4, stdin="\n".join(lines))
    assert done.returncode == 2
    assert (tmp_path / "chat.saved").is_file()
    said = notes(done)
    assert any(line.startswith("loaded 2 messages") for line in said)
    assert any("is not known; write the path in full" in line for line in said)
    assert sum(line.startswith("KV ") for line in said) == 2


def test_save_leaves_other_files_alone(models: dict[str, Path], tmp_path: Path) -> None:
    model, saved = tmp_path / "model.gguf", tmp_path / "chat.saved"
    model.write_bytes(models["chat"].read_bytes())
    lines = ["hello", f"/save {model}", f"/save {saved}", f"/save {saved}", "again"]
    done = run(model, "--calibrate", "never", "--max-tokens", 4, stdin="\n".join(lines))
    assert done.returncode == 2
    said = notes(done)
    assert f"{model} is there already and is not a saved chat; give the path of a new file" in said
    assert sum(line.startswith("saved ") for line in said) == 2
    assert model.read_bytes() == models["chat"].read_bytes()


@pytest.mark.parametrize("quote", ["'", '"'])
def test_a_path_may_be_quoted(models: dict[str, Path], tmp_path: Path, quote: str) -> None:
    saved = tmp_path / "my chat.saved"
    lines = [f"{name} {quote}{saved}{quote}" for name in ("/save", "/load")]
    done = run(models["chat"], "--calibrate", "never", stdin="\n".join(lines))
    assert done.returncode == 0
    assert saved.is_file()


def test_the_end_of_a_pipe_is_the_end(models: dict[str, Path]) -> None:
    done = run(models["chat"], "--max-tokens", 4, stdin="hello\n\n  \nhow are you")
    assert done.returncode == 0
    assert sum(line.startswith("KV ") for line in notes(done)) == 2


def test_json_is_one_object(models: dict[str, Path]) -> None:
    arguments = ["--json", "--max-tokens", 6, "--config", CACHE, "--system", "be kind", "--ctx", 256]
    arguments += ["--seed", 1]
    done = run(models["chat"], "--prompt", "hello\nworld", *arguments)
    piped = run(models["chat"], *arguments, stdin="hello\nworld")
    found = json.loads(done.stdout)
    assert found["answer"] == json.loads(piped.stdout)["answer"]
    assert found["finish_reason"] == "length"
    assert found["tokens"] == 6
    assert found["context"] == 256
    assert found["context_used"] == found["prompt_tokens"] + 6
    assert found["cache"] == MiniCache(type_k="q8_0", type_v="q8_0").spec()
    assert found["ratio"] == pytest.approx(found["kv_bytes_f16"] / found["kv_bytes"], rel=0.01)
    assert found["tokens_per_second"] > 0
    assert "mean distance" in found["warnings"][0]


def test_a_model_without_template_still_talks(models: dict[str, Path]) -> None:
    done = run(models["plain"], "--prompt", "hello", "--max-tokens", 4)
    assert done.returncode == 0
    assert "no chat template" in notes(done)[1]


def test_without_a_plan_and_calibration_the_cache_is_q8_0(models: dict[str, Path]) -> None:
    for arguments in ([], ["--config", "auto"], ["--calibrate", "never"]):
        said = notes(run(models["chat"], "--prompt", "hello", "--max-tokens", 4, *arguments))
        assert "plain q8_0" in said[0]
        assert f"minicache calibrate {models['chat']}" in said[0]
        assert "ratio 1.88" in said[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none.gguf"], "does not exist"),
        (["{tmp}"], "is a directory"),
        (["{tmp}/text.gguf"], "is not a GGUF file"),
        (["{tmp}/empty.gguf"], "is not a GGUF file"),
        (["{tmp}/short.gguf"], "is truncated"),
        (["{tmp}/martian.gguf"], "martian"),
        (["{tmp}/hollow.gguf"], "cannot be used"),
        (["{model}", "--ctx", "2000000000"], "of memory is free; take a smaller --ctx"),
        (["{model}", "--ctx", "0"], "1 or more"),
        (["{model}", "--threads", "-1"], "1 or more"),
        (["{model}", "--threads", "100000"], "512 or less"),
        (["{model}", "--temp", "nan"], "--temp"),
        (["{model}", "--top-p", "2"], "from 0 to 1"),
        (["{model}", "--config", "q3"], "not a cache"),
        (["{model}", "--config", "slerp:t=1.5"], "from 0 to 1"),
        (["{model}", "--config", "slerp:start=6"], "0 to 5"),
        (["{model}", "--config", "slerp:pairs=1-2;2-3"], "overlaps"),
        (["{model}", "--config", "slerp:start=5,strict=1"], "strict"),
        (["{model}", "--config", "{tmp}/none.gguf"], "none.gguf does not exist"),
        (["{model}", "--config", "{model}"], "is not a plan"),
        (["{model}", "--prompt", "x", "--ctx", "256", "--json", "--system", "y" * 300], "tokens"),
        (["{broken}"], "chat template"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    models: dict[str, Path], bad_files: Path, arguments: list[str], words: str
) -> None:
    names = {"{tmp}": str(bad_files), "{model}": str(models["chat"]), "{broken}": str(models["broken"])}
    for name, path in names.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    done = run(*arguments, stdin="hello\n")
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, done.stderr
    assert words in lines[0]


@pytest.fixture(scope="module")
def bad_files(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.gguf").write_text("hello")
    (folder / "empty.gguf").write_bytes(b"")
    data = models["chat"].read_bytes()
    (folder / "short.gguf").write_bytes(data[: len(data) // 2])
    for name, arch in (("martian", "martian"), ("hollow", "llama")):  # hollow: keys without tensors
        writer = gguf.GGUFWriter(folder / f"{name}.gguf", arch)
        writer.add_block_count(2)
        writer.add_embedding_length(64)
        writer.add_head_count(2)
        tiny_models.finish(writer)
    return folder


def test_text_of_another_encoding_is_refused(models: dict[str, Path]) -> None:
    for name in ("--prompt", "--system"):
        done = run(models["chat"], "--calibrate", "never", name, "caf\udce9")
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(f"{name} is not UTF-8 text; convert it, or pipe it in")
        assert "Traceback" not in done.stderr


def test_a_piped_message_without_an_answer_is_an_error_and_the_next_is_answered(
    models: dict[str, Path],
) -> None:
    arguments = ("--calibrate", "never", "--ctx", 256, "--max-tokens", 4)
    done = run(models["chat"], *arguments, stdin=f"{'long ' * 200}\nshort\n")
    assert done.returncode == 2
    assert len([line for line in notes(done) if "tokens/s" in line]) == 1
    assert run(models["chat"], *arguments, stdin="short\n").returncode == 0


def test_arguments_that_exclude_each_other_are_a_usage_error(models: dict[str, Path]) -> None:
    done = run(models["chat"], "--no-minicache", "--config", "q8_0")
    assert done.returncode == 2
    assert "not allowed with" in done.stderr

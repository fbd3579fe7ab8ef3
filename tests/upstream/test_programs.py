"""Upstream's programs with a plan in LLAMA_MINICACHE, all options left as they are that a user would leave."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from oracle.model import Config
from support.family_caches import LoadedFamily
from support.loaded import Loaded

TOLD = re.compile(r"^LLAMA_MINICACHE: (.*)$", re.MULTILINE)
MERGED = re.compile(
    r"the KV cache is merged: (?P<ours>[\d.]+) MiB instead of (?P<f16>[\d.]+) MiB as f16, [\d.]+ times smaller"
)

# the arguments of each program beside the model
PROGRAMS: dict[str, list[str]] = {
    "llama-batched-bench": ["-c", "2048", "-npp", "16", "-ntg", "4", "-npl", "1,2"],
    "llama-bench": ["-p", "16", "-n", "4", "-r", "1"],
    "llama-cli": ["-c", "2048", "-p", "Hello", "-n", "4", "-st"],
    "llama-completion": ["-c", "2048", "-p", "Hello", "-n", "4", "-no-cnv"],
    "llama-perplexity": ["-f", "TEXT", "-c", "512", "--chunks", "1"],
}


def environment(plan: Path | None) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    return clean | ({"LLAMA_MINICACHE": str(plan)} if plan else {})


def run(tool: Path, model: Path, *arguments: str, plan: Path | None) -> str:
    """Runs a program to its end, and returns what it wrote to both outputs."""
    result = subprocess.run(
        [tool, "-m", model, "-t", "1", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",  # of tiny models, whose text is of any bytes
        timeout=240,
        env=environment(plan),
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def ratio_told(output: str) -> float:
    """f16 bytes over the cache's, of the one line that says what became of LLAMA_MINICACHE."""
    (told,) = set(TOLD.findall(output))
    sizes = MERGED.fullmatch(told)
    assert sizes, told
    return float(sizes["f16"]) / float(sizes["ours"])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_with_a_plan_and_says_so(
    tools_dir: Path, smollm2: Path, smollm2_plan: Path, tmp_path: Path, name: str
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat, and the dog lay beside it. " * 200, encoding="utf-8")
    arguments = [str(text) if one == "TEXT" else one for one in PROGRAMS[name]]
    output = run(tools_dir / name, smollm2, *arguments, plan=smollm2_plan)
    # the contexts of llama-bench are as long as its test, so that what has a fixed size counts much
    assert name == "llama-bench" or ratio_told(output) > 2
    assert "the KV cache is merged" in output


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "qwen35", "falcon-h1"])
def test_a_mixed_model_runs_with_a_plan(tools_dir: Path, tmp_path: Path, name: str) -> None:
    """With --fit, which makes the memory of a model without its weights first."""
    loaded = LoadedFamily(name, tmp_path / "model.gguf")
    loaded.coded(Config(), tmp_path / "plan.gguf")
    arguments = PROGRAMS["llama-completion"]
    output = run(tools_dir / "llama-completion", loaded.path, *arguments, plan=tmp_path / "plan.gguf")
    assert "the KV cache is merged" in output


def test_programs_without_a_plan_say_nothing(tools_dir: Path, smollm2: Path) -> None:
    output = run(tools_dir / "llama-completion", smollm2, *PROGRAMS["llama-completion"], plan=None)
    assert "LLAMA_MINICACHE" not in output


def test_another_model_gets_a_plain_cache_and_one_line(
    tools_dir: Path, random_model: Loaded, smollm2_plan: Path
) -> None:
    arguments = PROGRAMS["llama-completion"]
    output = run(tools_dir / "llama-completion", random_model.path, *arguments, plan=smollm2_plan)
    (told,) = TOLD.findall(output)
    assert "was made for another model" in told


def test_the_fit_counts_the_merged_cache(tools_dir: Path, smollm2: Path, smollm2_plan: Path) -> None:
    """Before a model is loaded, upstream's programs find out how much memory it will take (--fit)."""
    projected: dict[str, int] = {}
    for name, plan in {"f16": None, "plan": smollm2_plan}.items():
        arguments = ["-c", "8192", "-p", "Hello", "-n", "1", "-no-cnv", "-lv", "4"]
        output = run(tools_dir / "llama-completion", smollm2, *arguments, plan=plan)
        found = re.search(r"projected to use (\d+) MiB", output)
        assert found, output
        projected[name] = int(found[1])
        if plan:
            sizes = MERGED.search(output)
            assert sizes, output
    saved = float(sizes["f16"]) - float(sizes["ours"])
    assert saved > 100
    # the rest of the difference is in the graphs' memory
    assert projected["f16"] - projected["plan"] == pytest.approx(saved, abs=30)


@contextmanager
def server(tool: Path, model: Path, plan: Path, log: Path) -> Iterator[str]:
    """A llama-server, which answers requests at the address that it gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [tool, "-m", model, "-t", "1", "-c", "4096", "--port", str(port)]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment(plan))
    try:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        assert process.poll() is None, log.read_text(errors="replace")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def post(address: str, **body: object) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def test_the_server_answers_with_a_plan(
    tools_dir: Path, smollm2: Path, smollm2_plan: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with server(tools_dir / "llama-server", smollm2, smollm2_plan, log) as address:
        chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
        answers = [
            post(f"{address}/v1/chat/completions", messages=chat, max_tokens=24, temperature=0)
            for _ in range(2)
        ]
        assert "Paris" in answers[0]["choices"][0]["message"]["content"]
        # the second request finds the first one's tokens in the cache
        assert answers[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > 10
        assert "Paris" in answers[1]["choices"][0]["message"]["content"]
    assert ratio_told(log.read_text(errors="replace")) > 2

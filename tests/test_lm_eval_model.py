"""The model for lm-evaluation-harness, and a task in a local file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minicache_cpp import MiniCacheError


@pytest.fixture
def harness_model(model: Path) -> Iterator[Any]:
    pytest.importorskip("lm_eval")
    from minicache_cpp.lm_eval_model import MiniCacheLM

    lm = MiniCacheLM.create_from_arg_string(
        f"pretrained={model},config=slerp:start=0.5,t=0.25,type=q8_0,ctx=256,threads=1,ubatch=16",
        {"batch_size": 1, "max_batch_size": None, "device": None},
    )
    yield lm
    lm.model.close()


def requests(*arguments: tuple[object, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def test_a_spec_with_commas_arrives_whole(harness_model: Any) -> None:
    report = harness_model.model.report()
    assert report.active
    assert (report.t, report.type_k, report.n_cells) == (0.25, "q8_0", 256)


def test_likelihoods_of_texts(harness_model: Any) -> None:
    lm = harness_model
    pairs = [("one two three", " four"), ("one two three", " five six"), ("", "seven")]
    found = lm.loglikelihood(requests(*pairs), disable_tqdm=True)
    for (before, text), (total, greedy) in zip(pairs, found, strict=True):
        whole = (
            lm.tok_encode(before + text) if before else [1, *lm.tok_encode(text, add_special_tokens=False)]
        )
        start = len(lm.tok_encode(before)) if before else 1
        assert (total, greedy) == lm.model.score(whole[:start], whole[start:])
        assert total < 0


def test_a_long_text_is_scored_in_windows(harness_model: Any) -> None:
    lm = harness_model
    text = "a long text of many words. " * 20  # 540 tokens in a context of 256
    (total,) = lm.loglikelihood_rolling(requests((text,)), disable_tqdm=True)
    tokens = lm.tok_encode(text, add_special_tokens=False)
    assert len(tokens) > 510
    first, second = tokens[:255], tokens[255:510]
    expected = lm.model.score([1], first)[0] + lm.model.score(first[-1:], second)[0]
    rest = tokens[510:]
    expected += lm.model.score(tokens[-256 : -len(rest)], rest)[0]
    assert total == pytest.approx(expected, rel=1e-6)


def test_answers_end_where_the_task_says(harness_model: Any) -> None:
    lm = harness_model
    ask = lambda **options: lm.generate_until(requests(("begin", options)), disable_tqdm=True)[0]  # noqa: E731
    free = ask(max_gen_toks=10)
    assert ask(max_gen_toks=4) == free[: len(ask(max_gen_toks=4))] != free
    assert ask(max_gen_toks=10, until=[free[2]]) == free[: free.find(free[2])]
    with pytest.raises(MiniCacheError, match="greedy"):
        ask(do_sample=True, temperature=0.7)


TASK = """
task: local_capitals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""


def test_a_local_task_runs_from_the_command_line(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    colors = ["red", "blue", "green", "gold"]
    rows = [
        {"question": f"The color of the {place} is {colors[answer]}. Again: the color of the {place} is",
         "choices": colors, "answer": answer}
        for answer, place in enumerate(("harbor", "mill", "tower"))
    ]  # fmt: skip
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "local_capitals.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    command = [sys.executable, "-m", "minicache_cpp.lm_eval_model", "--model", "minicache", "--model_args",
               f"pretrained={smollm2},config=q8_0,ctx=256,threads=1", "--tasks", "local_capitals",
               "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]  # fmt: skip
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    (result,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(result.read_text())["results"]["local_capitals"]
    assert found["acc,none"] == 1


def test_without_the_harness_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['lm_eval'] = None; import minicache_cpp.lm_eval_model"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "minicache-cpp[lm-eval]" in done.stderr

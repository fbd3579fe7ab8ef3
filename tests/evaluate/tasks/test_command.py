"""`minicache evaluate --task` and `--retrieve`: every kind of task, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import CacheSpec, cli
from minicache_cpp.evaluate.tasks import asking
from minicache_cpp.evaluate.tasks.registry import RETRIEVALS
from minicache_cpp.reading.text_model import TextModel

Found = Callable[..., dict[str, Any]]

FILES = {
    "choices": '{"question": "Which?", "choices": ["ab", "cab", "b"], "answer": %d}\n' * 6 % (0, 1, 2, 0, 1, 2),
    "blank": '{"question": "A _ is here.", "choices": ["cat", "dog"], "answer": %d}\n' * 4 % (0, 1, 0, 1),
    "gsm8k": '{"question": "How many?", "answer": "Five.\\n#### 5"}\n',
    "truthfulqa": json.dumps(
        [{"question": "Is it?", "mc1_targets": {"yes": 0, "no": 1}, "mc2_targets": {"yes": 0, "no": 1, "never": 1}}] * 2
    ),
    "babi": "1 A went to the den.\n2 Where is A?\tden\t1\n1 B sat.\n2 B went to the inn.\n3 Where is B?\tinn\t2\n",
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for kind, text in FILES.items():
        found[kind] = tmp_path / f"{kind}-task.jsonl"
        found[kind].write_text(text, encoding="utf-8")
    return found


@pytest.fixture
def haystack(tmp_path: Path) -> Path:
    path = tmp_path / "haystack.txt"
    path.write_text(
        "".join(f"It was day {number}, and it rained. " for number in range(200)), encoding="utf-8"
    )
    return path


@pytest.fixture
def found(model: Path, capsys: pytest.CaptureFixture[str]) -> Found:
    def run(*arguments: object) -> dict[str, Any]:
        assert cli.main(["evaluate", str(model), *map(str, arguments), "--threads", "1", "--json"]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_every_kind_of_file_is_asked_of_every_cache(found: Found, files: dict[str, Path]) -> None:
    result = found("--task", *files.values(), "--config", "slerp:start=0", "--config", "q8_0")
    assert (result["ubatch"], result["shots"], result["text"]) == (64, 0, [])
    names = ["f16", CacheSpec.parse("slerp:start=0").name, "q8_0"]
    assert [(row["task"], row["name"]) for row in result["rows"]] == [
        (f"{kind}-task", name) for kind in FILES for name in names
    ]
    asked = {"choices": 6, "blank": 4, "gsm8k": 1, "truthfulqa": 2, "babi": 2}
    for row in result["rows"]:
        assert row["asked"] == len(row["items"]) == asked[row["kind"]]
        assert (row["context"] % 256, row["depth"]) == (0, None)
        for metric, value in row["metrics"].items():
            scores = [item["scores"][metric] for item in row["items"]]
            assert value["score"] == pytest.approx(np.mean(scores))
            assert value["stderr"] == pytest.approx(np.std(scores) / len(scores) ** 0.5)
            if row["name"] == "f16" and value["agreement"] is not None:
                assert (value["agreement"], value["changed"]) == (1, 0)
    assert result["rows"][0]["ratio"] == 1 < result["rows"][1]["ratio"]


def test_likelihoods_are_those_of_a_text_model(found: Found, files: dict[str, Path], model: Path) -> None:
    rows = found("--task", files["choices"], "--config", "q4_0", "--shots", 1, "--task-limit", 3)["rows"]
    assert [item["item"] for item in rows[0]["items"]] == ["line 2", "line 3", "line 4"]
    prompt = "Question: Which?\nAnswer: ab\n\nQuestion: Which?\nAnswer:"
    for row in rows:
        with TextModel(model, CacheSpec.parse(row["name"]), 256, 64, 1) as text_model:
            vocabulary = text_model.vocabulary
            before = vocabulary.begun(vocabulary.tokenize(prompt))
            sums = []
            for choice in (" ab", " cab", " b"):
                whole = vocabulary.begun(vocabulary.tokenize(prompt + choice))
                assert whole[: len(before)] == before
                sums.append(text_model.score(before, whole[len(before) :])[0])
        by_length = np.divide(sums, [2, 3, 1])
        for item in row["items"]:
            assert item["log_likelihoods"] == pytest.approx(sums)
            assert item["answers"] == {"acc": np.argmax(sums), "acc_norm": np.argmax(by_length)}
            assert item["scores"]["acc"] == (np.argmax(sums) == item["right"])


def test_answers_are_the_greedy_continuation_of_the_chat(
    found: Found, files: dict[str, Path], model: Path
) -> None:
    (row,) = found("--task", files["gsm8k"], "--config", "f16")["rows"]
    with TextModel(model, CacheSpec.parse("f16"), row["context"], 64, 1) as text_model:
        template, vocabulary = text_model.template, text_model.vocabulary
        question = "How many?\nSolve this step by step, and end with the number that is the answer."
        prompt = template.render([{"role": "user", "content": question}])
        tokens = vocabulary.begun(vocabulary.tokenize(prompt))
        assert len(tokens) + 320 <= row["context"]
        assert row["items"][0]["written"] == text_model.generate(tokens, 320, template.stop)
    assert row["items"][0]["right"] == 5


@pytest.mark.parametrize("kind", RETRIEVALS)
def test_every_retrieval_is_asked_at_every_length_and_depth(
    found: Found, files: dict[str, Path], haystack: Path, kind: str
) -> None:
    stories = ["--task", files["babi"]] if kind == "babi" else []
    result = found("--retrieve", kind, *stories, "--text", haystack, "--ctx", 256, "--ctx", 320,
                   "--depth", "0.1,0.9", "--task-limit", 2, "--config", "q4_0")  # fmt: skip
    assert result["text"] == ["haystack.txt"]
    assert [(row["kind"], row["context"], row["depth"], row["name"]) for row in result["rows"]] == [
        (kind, n_ctx, depth, name) for n_ctx in (256, 320) for depth in (0.1, 0.9) for name in ("f16", "q4_0")
    ]
    for row in result["rows"]:
        assert row["asked"] == 2 and set(row["metrics"]) == {"acc"}
    # every cache gets the same questions
    rights = [[item["right"] for item in row["items"]] for row in result["rows"][:2]]
    assert rights[0] == rights[1]


def test_a_cache_that_changes_answers_is_seen_in_the_table(
    model: Path, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"f16": {" ab": -1, " cab": -2, " b": -3}, "q8_0": {" ab": -3, " cab": -2, " b": -1}}

    class Planted(asking.ModelReader):
        def likelihoods(self, endings: Any) -> list[float]:
            return [scores[self.model.report().type_k][ending] for _, ending in endings]

    monkeypatch.setattr(asking, "ModelReader", Planted)
    arguments = ["--task", str(files["choices"]), "--config", "q8_0", "--threads", "1"]
    assert cli.main(["evaluate", str(model), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 120 for line in lines)
    rows = [line.split() for line in lines if line.startswith(("f16 ", "q8_0 "))]
    right = (2 / 6 * 4 / 6 / 6) ** 0.5
    assert rows == [
        [name, ratio, "choices-task", "256", "-", "6", metric, "33.3%", f"{right:.1%}", same, changed]
        for name, ratio, same, changed in (("f16", "1.00", "100.0%", "0"), ("q8_0", "1.88", "0.0%", "6"))
        for metric in ("acc", "acc_norm")
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--task", "BAD"], "bad.jsonl, line 2: 'choices' is not a list of two texts or more"),
        (
            ["--task", "CHOICES", "--shots", 6],
            "has 6 items, and the first 6 are examples; take fewer --shots",
        ),
        (["--task", "CHOICES", "--shots", -1], "--shots -1"),
        (["--task", "CHOICES", "--task-limit", 0], "--task-limit 0"),
        (["--task", "CHOICES", "--ctx", 512], "--ctx is for --retrieve"),
        (["--task", "CHOICES", "--depth", 0.5], "--depth is for --retrieve"),
        (["--task", "CHOICES", "--pos-offset", 5], "--pos-offset is for the comparison on a text"),
        (["--task", "CHOICES", "--score", "all"], "--score is for the comparison on a text"),
        (["--retrieve", "babi"], "give their files with --task"),
        (["--retrieve", "needle", "--shots", 1], "--shots takes its examples from the file"),
        (["--retrieve", "needle", "--depth", "0.5,1.5"], "--depth 1.5: it must be a number from 0 to 1"),
        (["--retrieve", "needle", "--depth", "x"], "--depth x: it must be a number from 0 to 1"),
        (["--retrieve", "needle", "--text", "TEXT", "--ctx", 100000], "give more --text, or a smaller --ctx"),
        (["--retrieve", "variables", "--text", "TEXT", "--ctx", 64], "take a larger --ctx"),
        (["--depth", "0.5"], "--depth is for --task and --retrieve"),
        (["--task-limit", 5], "--task-limit is for --task and --retrieve"),
        (["--shots", 1], "--shots is for --task and --retrieve"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_weights_are_loaded(
    model: Path,
    files: dict[str, Path],
    haystack: Path,
    arguments: list[object],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asking, "TextModel", lambda *_: pytest.fail("the weights were loaded"))
    bad = files["choices"].with_name("bad.jsonl")
    bad.write_text(
        '{"question": "Which?", "choices": ["a", "b"], "answer": 1}\n{"question": "x", "choices": 3}\n'
    )
    paths = {"BAD": bad, "CHOICES": files["choices"], "TEXT": haystack}
    given = [paths.get(str(one), one) for one in arguments]
    assert cli.main(["evaluate", str(model), *map(str, given)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1

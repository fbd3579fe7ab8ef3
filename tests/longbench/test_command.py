"""`minicache longbench` on files made here: prompts that are cut, and answers of a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from minicache_cpp import CacheSpec, MiniCacheError, cli
from minicache_cpp.longbench import metrics
from minicache_cpp.longbench.asking import Asking, score
from minicache_cpp.longbench.items import Item
from minicache_cpp.longbench.results import prepare_folders
from minicache_cpp.longbench.tasks import TASKS, Task
from minicache_cpp.reading.text_model import TextModel
from support.longbench_files import line, write


def test_the_best_of_the_right_answers_counts() -> None:
    item = Item("", "", ["nobody", "Ann"], [], 0, "")
    assert score(TASKS["hotpotqa"], "Ann", item) == 1
    # in tasks with examples a model goes on to write an example of its own
    assert score(TASKS["triviaqa"], "\nAnn\nQuestion: Who else?", item) == 1
    assert score(TASKS["hotpotqa"], "\nAnn\nQuestion: Who else?", item) < 1


def test_a_long_text_loses_its_middle(model: Path) -> None:
    task = Task("Read: {context} Asked: {input}", metrics.question_f1, 20)
    context = "".join(f"<{i}>" for i in range(200))
    with TextModel(model, CacheSpec.parse("f16"), 256, threads=1) as text_model:
        asking = Asking(text_model, "f16")
        tokens, cut = asking.prompt(task, Item(context, "{why}?", [], [], 0, ""))
        assert cut
        assert 200 < len(tokens) <= 256 - 20
        assert tokens[0] == 1  # <s>
        text = text_model.vocabulary.detokenize(tokens)
        assert text.strip().startswith("Read: <0><1>") and text.endswith("<199> Asked: {why}?")
        assert "<100>" not in text
        _, cut = asking.prompt(task, Item("short", "why?", [], [], 0, ""))
        assert not cut
        with pytest.raises(MiniCacheError, match="larger --ctx"):
            asking.prompt(Task("{context}", metrics.question_f1, 256), Item(context, "", [], [], 0, ""))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "is not a folder"),
        (["--task", "sums"], "is not a task of LongBench"),
        (["--task", "lcc"], "no lcc.jsonl"),
        (["--task", "trec"], "line 1: not an object"),
        (["--config", "q3_9"], "not a cache"),
        (["--limit", "0"], "--limit 0"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    model: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "qasper", line("c", "q", "a"))
    (tmp_path / "trec.jsonl").write_text('{"context": 1}', encoding="utf-8")
    data = [] if "--data" in arguments else ["--data", str(tmp_path)]
    assert cli.main(["longbench", str(model), *data, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


@pytest.fixture
def found(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object) -> dict[str, Any]:
        assert cli.main(["longbench", *map(str, arguments), "--threads", "1", "--json"]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_a_real_model_answers_from_the_text(
    smollm2: Path, tmp_path: Path, found: Callable[..., dict[str, Any]]
) -> None:
    lines = [
        line(f"{name} lives in {town}, and works there too.", f"Where does {name} live?", town)
        for name, town in (("Ann", "Paris"), ("Tom", "London"), ("Eve", "Oslo"))
    ]
    write(tmp_path, "hotpotqa", *lines)
    write(tmp_path, "passage_count", line("One. Two. One.", "", "2"))
    output = tmp_path / "answers"
    result = found(smollm2, "--data", tmp_path, "--config", "f16", "--config", "q8_0",
                   "--ctx", 512, "--output", output)  # fmt: skip
    assert (result["context"], result["ubatch"], result["prompts"]) == (512, 64, "ours")
    assert result["tasks"] == {
        "passage_count": {"metric": "number", "questions": 1, "truncated": 0},
        "hotpotqa": {"metric": "question_f1", "questions": 3, "truncated": 0},
    }
    assert [row["name"] for row in result["rows"]] == ["f16", "q8_0"]
    assert result["rows"][1]["ratio"] > 1.8
    for row in result["rows"]:
        assert row["average"] == sum(row["scores"].values()) / 2
        written = (output / row["name"] / "hotpotqa.jsonl").read_text(encoding="utf-8").splitlines()
        answers = [json.loads(one) for one in written]
        assert [one["answers"] for one in answers] == [one["answers"] for one in lines]
        # sentences, so that some of their words are not those of the answer
        assert all(one["answers"][0] in one["pred"] for one in answers)
        assert 0 < row["scores"]["hotpotqa"] < 100


@pytest.mark.parametrize("name", ["a file in the way", "the questions themselves"])
def test_answers_replace_nothing_but_answers(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """What would be replaced is refused before anything is asked."""
    data = tmp_path / "f16"
    data.mkdir()
    write(data, "qasper", line("c", "q", "a"))
    before = (data / "qasper.jsonl").read_bytes()
    output = data / "qasper.jsonl" if name == "a file in the way" else tmp_path
    arguments = ["longbench", str(model), "--data", str(data), "--config", "f16", "--output", str(output)]
    monkeypatch.setattr(Asking, "answers", lambda *_: pytest.fail("a question was asked"))
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (data / "qasper.jsonl").read_bytes() == before


def test_two_caches_have_no_common_folder(tmp_path: Path) -> None:
    specs = [cast(CacheSpec, SimpleNamespace(name=name)) for name in ("plans/a b.gguf", "plans/a_b.gguf")]
    prepare_folders(tmp_path, [specs[0], specs[0]], ["qasper"])
    with pytest.raises(MiniCacheError, match=r"a b\.gguf and .*a_b\.gguf would both be in plans_a_b\.gguf"):
        prepare_folders(tmp_path, specs, ["qasper"])


def test_the_table_names_what_was_cut(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "hotpotqa", line("word " * 200, "which?", "word"))
    assert cli.main(["longbench", str(model), "--data", str(tmp_path), "--ctx", "400", "--config", "q8_0",
                     "--threads", "1"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "hotpotqa: question_f1, 1 questions, 1 of them cut in the middle" in out
    assert "q8_0" in out

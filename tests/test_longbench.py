"""`minicache longbench` on files made here: its metrics by hand, its cuts, and answers that a model really gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models

from minicache_cpp import CacheSpec, MiniCacheError, cli
from minicache_cpp.longbench import metrics
from minicache_cpp.longbench.asking import Asking, score
from minicache_cpp.longbench.items import Item, find_files, read_items
from minicache_cpp.longbench.tasks import TASKS, Task, prompts_from
from minicache_cpp.reading.text_model import TextModel


def line(context: str, asked: str, *answers: str, classes: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"context": context, "input": asked, "answers": list(answers), "all_classes": list(classes) or None,
            "length": len(context.split()), "dataset": "made", "language": "en", "_id": asked}  # fmt: skip


def write(folder: Path, task: str, *lines: dict[str, Any]) -> None:
    text = "\n".join(json.dumps(one, ensure_ascii=False) for one in lines)
    (folder / f"{task}.jsonl").write_text(text, encoding="utf-8")


# ---- metrics


@pytest.mark.parametrize(
    ("name", "answer", "right", "classes", "score"),
    [
        ("question_f1", "The Red, old house!", "a red house", (), 2 * 2 / (3 + 2)),
        ("question_f1", "red red", "red", (), 2 / 3),
        ("question_f1", "blue", "red", (), 0),
        ("question_f1", "", "red", (), 0),
        ("question_f1_zh", "北京。", "北京市", (), 2 * 2 / (2 + 3)),
        ("summary", "the cat sat on a mat", "the cat lay on the mat", (), 2 * 4 / 12),
        ("summary", "mat the", "the mat", (), 0.5),
        ("summary", "again", "again and again", (), 2 * 1 / 4),
        ("summary_zh", "会议决定", "会议，决定！", (), 1),
        ("classification", "It is a human question", "human", ("human", "place"), 1),
        ("classification", "human or place", "human", ("human", "place"), 0.5),
        ("classification", "Other location", "Other location", ("location", "Other location"), 1),
        ("classification", "place", "human", ("human", "place"), 0),
        ("number", "there are 7, not 8", "7", (), 0.5),
        ("number", "none", "7", (), 0),
        ("paragraph", "Paragraph 12", "Paragraph 12", (), 1),
        ("paragraph", "段落3", "段落3", (), 1),
        ("paragraph", "Paragraph 1", "Paragraph 12", (), 0),
        ("code_line", "\n# a comment\nreturn x + 1", "return x + 1", (), 1),
        ("code_line", "```python\nreturn x", "return y", (), 0.88),
    ],
)
def test_a_metric_is_what_it_says(
    name: str, answer: str, right: str, classes: tuple[str, ...], score: float
) -> None:
    assert getattr(metrics, name)(answer, right, classes) == pytest.approx(score)


def test_rouge_l_is_that_of_the_rouge_score_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    pairs = [
        ("the ship left the harbor at noon", "at noon the old ship left harbor"),
        ("one two three four five six", "six five four three two one"),
        ("a b c d", "a x b y c z d"),
    ]
    for found, right in pairs:
        expected = scorer.score(right, found)["rougeL"].fmeasure
        assert metrics.summary(found, right, ()) == pytest.approx(expected)


def test_the_best_of_the_right_answers_counts() -> None:
    item = Item("", "", ["nobody", "Ann"], [], 0, "")
    assert score(TASKS["hotpotqa"], "Ann", item) == 1
    # in tasks with examples the model writes its own next one
    assert score(TASKS["triviaqa"], "\nAnn\nQuestion: Who else?", item) == 1
    assert score(TASKS["hotpotqa"], "\nAnn\nQuestion: Who else?", item) < 1


def test_all_tasks_of_longbench_are_there() -> None:
    assert len(TASKS) == 21
    for task in TASKS.values():
        assert "{context}" in task.prompt
        assert task.prompt.count("{") == task.prompt.count("{context}") + task.prompt.count("{input}")


# ---- prompts and files


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.random_model().write(tmp_path_factory.mktemp("models") / "random.gguf")


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


def test_prompts_can_be_those_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "dataset2prompt.json"
    path.write_text(json.dumps({"qasper": "Article: {context} {input}"}), encoding="utf-8")
    tasks = prompts_from(path)
    assert tasks["qasper"].prompt == "Article: {context} {input}"
    assert tasks["qasper"].n_most == 128
    assert tasks["trec"] == TASKS["trec"]
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(MiniCacheError, match="no JSON object"):
        prompts_from(path)


def test_files_are_found_by_their_names(tmp_path: Path) -> None:
    write(tmp_path, "qasper_e", line("c", "q", "a"))
    write(tmp_path, "trec", line("c", "q", "a"), line("c", "q2", "b"))
    write(tmp_path, "other", line("c", "q", "a"))
    files = find_files(tmp_path, [])
    assert list(files) == ["qasper_e", "trec"]
    assert [item.input for item in read_items(files["trec"], 1)] == ["q"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nowhere"], "no folder"),
        (["--task", "sums"], "no task of LongBench"),
        (["--task", "lcc"], "no lcc.jsonl"),
        (["--task", "trec"], "line 1: not an object"),
        (["--config", "q3_9"], "no cache setting"),
        (["--limit", "0"], "--limit 0"),
    ],
)
def test_bad_input_is_told_in_one_line(
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


# ---- the command


@pytest.fixture
def found(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object) -> dict[str, Any]:
        assert cli.main(["longbench", *map(str, arguments), "--threads", "1", "--json"]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_the_demo_model_answers_from_the_text(
    demo_model: Path, tmp_path: Path, found: Callable[..., dict[str, Any]]
) -> None:
    told = "The color of the harbor is red. The color of the mill is blue. The color of the tower is green."
    lines = [
        line(
            told,
            f"Question: What is the color of the {place}?\nAnswer:",
            f"The color of the {place} is {color}",
        )
        for place, color in (("harbor", "red"), ("mill", "blue"), ("tower", "green"))
    ]
    write(tmp_path, "triviaqa", *lines)
    write(tmp_path, "passage_count", line("One. Two. One.", "", "2"))
    output = tmp_path / "answers"
    result = found(demo_model, "--data", tmp_path, "--config", "f16", "--config", "slerp:type=q8_0",
                   "--ctx", 512, "--output", output)  # fmt: skip
    assert (result["context"], result["ubatch"], result["prompts"]) == (512, 64, "ours")
    assert result["tasks"] == {
        "passage_count": {"metric": "number", "questions": 1, "truncated": 0},
        "triviaqa": {"metric": "question_f1", "questions": 3, "truncated": 0},
    }
    assert [row["name"] for row in result["rows"]] == ["f16", CacheSpec.parse("slerp:type=q8_0").name]
    for row in result["rows"]:
        assert row["scores"]["triviaqa"] == 100
        assert row["average"] == sum(row["scores"].values()) / 2
    assert result["rows"][1]["ratio"] > 2
    written = (output / "f16" / "triviaqa.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(one)["answers"] for one in written] == [one["answers"] for one in lines]
    assert all("The color of the" in json.loads(one)["pred"] for one in written)


def test_the_table_names_what_was_cut(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "hotpotqa", line("word " * 200, "which?", "word"))
    assert cli.main(["longbench", str(model), "--data", str(tmp_path), "--ctx", "400", "--config", "q8_0",
                     "--threads", "1"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "hotpotqa: question_f1, 1 questions, 1 of them cut in the middle" in out
    assert "q8_0" in out

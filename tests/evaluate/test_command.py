"""`minicache evaluate`: what it measures is measured here in another way, on models made for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import CacheSpec, Llama, MiniCacheError, cli
from minicache_cpp.evaluate import evaluation, facts, material
from minicache_cpp.evaluate.settings import Settings
from minicache_cpp.evaluate.table import to_json
from minicache_cpp.host.units import digits
from minicache_cpp.native.binding import llama_h
from minicache_cpp.reading.divergence import Divergence, Reference, kl_divergence, log_probabilities
from minicache_cpp.reading.model import NativeModel
from minicache_cpp.reading.scored_context import ScoredContext
from minicache_cpp.text.chat_template import ChatTemplate
from minicache_cpp.text.vocabulary import Vocabulary
from support import contexts, tiny_models

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
    "top1": float,
    "recall": (float, type(None)),
}

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.random_model().write(tmp_path_factory.mktemp("models") / "random.gguf")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2000 bytes, each of them a token of the tiny models."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("".join(chr(33 + (i * i + 7 * i) % 90) for i in range(2000)), encoding="utf-8")
    return path


@pytest.fixture
def found(model: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> dict[str, Any]:
        given = ["evaluate", model, "--text", text, "--threads", 1, "--json", *arguments]
        assert cli.main(list(map(str, given))) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def test_json_has_the_keys_that_others_rely_on(found: Run) -> None:
    result = found("--ctx", 300, "--chunks", 2, "--no-recall", "--config", "q8_0", "--config", "slerp")
    assert (result["context"], result["tokens"], result["chunks"]) == (300, 300, 2)
    assert (result["ubatch"], result["prompt_ubatch"], result["pos_offset"]) == (1, 64, 0)
    assert "runs" not in result
    assert [row["name"] for row in result["rows"]] == ["f16", "q8_0", CacheSpec.parse("slerp").name]
    for row in result["rows"]:
        assert all(isinstance(row[key], kind) for key, kind in KEYS.items())
        assert row["recall"] is None


def test_more_loss_shows_as_more_divergence_above_a_floor_of_nothing(found: Run) -> None:
    rows = found("--ctx", 256, "--chunks", 2, "--no-recall", "--config", "q8_0", "--config", "q4_0")["rows"]
    floor, q8_0, q4_0 = rows
    assert abs(floor["kl_mean"]) < 1e-9 and floor["kl_max"] < 1e-9 and floor["top1"] == 1
    assert 0 < 10 * q8_0["kl_mean"] < q4_0["kl_mean"]
    assert q8_0["kl_mean"] < q8_0["kl_p99"] <= q8_0["kl_max"]
    assert q4_0["top1"] < 1 and q4_0["ppl"] != floor["ppl"]


def test_the_bytes_are_those_of_a_llama_of_this_context(found: Run, model: Path) -> None:
    for row in found("--ctx", 700, "--chunks", 1, "--no-recall", "--config", "slerp:type=q8_0")["rows"]:
        spec = CacheSpec.parse(row["name"])
        with Llama(str(model), n_ctx=700, minicache=spec.minicache, verbose=False) as llm:
            report = llm.kv_report()
        assert (row["bytes"], row["fixed_bytes"]) == (report.bytes, report.fixed_bytes)
        assert (row["ratio"], row["total_ratio"]) == (report.ratio, report.total_ratio)
        assert row["bytes_per_token"] * report.n_cells == report.bytes - report.fixed_bytes
        assert row["bits_per_value"] == pytest.approx(16 * report.bytes / report.bytes_f16, rel=1e-3)


def test_the_numbers_are_those_of_other_contexts(found: Run, model: Path, text: Path) -> None:
    # the same by hand: f16 and q4_0 read one chunk from position 500 on
    row = found(
        "--ctx", 200, "--chunks", 1, "--pos-offset", 500, "--no-recall", "--ubatch", 64, "--config", "q4_0"
    )["rows"][1]
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


def test_positions_are_shifted_in_every_context(found: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    decode = ScoredContext.decode

    def watched(self: ScoredContext, tokens: Sequence[int], position: int, scored_from: int) -> Any:
        yield from decode(self, tokens, position, scored_from)
        last = llama_h.llama_memory_seq_pos_max(self.memory, 0)
        seen.add((llama_h.llama_memory_seq_pos_min(self.memory, 0), last - position - len(tokens) + 1))

    monkeypatch.setattr(ScoredContext, "decode", watched)
    found("--ctx", 64, "--chunks", 1, "--pos-offset", 1000, "--recall", 8, "--rounds", 1, "--config", "slerp")
    assert seen == {(1000, 0)}


def test_several_contexts_and_positions_are_runs_of_one_object(found: Run) -> None:
    result = found("--ctx", 64, "--ctx", 128, "--pos-offset", 0, "--pos-offset", 900,
                   "--chunks", 1, "--no-recall", "--config", "q8_0")  # fmt: skip
    runs = result.pop("runs")
    assert [(run["context"], run["pos_offset"]) for run in runs] == [(64, 0), (64, 900), (128, 0), (128, 900)]
    assert runs[0] == result


def test_several_contexts_and_distances_are_one_table(
    model: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["evaluate", model, "--text", text, "--threads", 1, "--chunks", 1, "--rounds", 1, "--config", "q8_0",
             "--ctx", 64, "--ctx", 128, "--pos-offset", 0, "--pos-offset", 900]  # fmt: skip
    assert cli.main(list(map(str, given))) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if line.startswith("cache"))
    # a quarter and three quarters of each context
    assert head.split()[-8:] == ["recall", "16", "recall", "32", "recall", "48", "recall", "96"]
    rows = [line.split() for line in lines if line.startswith(("f16 ", "q8_0 "))]
    assert [row[:3] for row in rows] == [
        [name, context, offset]
        for context in ("64", "128")
        for offset in ("0", "900")
        for name in ("f16", "q8_0")
    ]
    assert all([cell == "-" for cell in row[-4:]] == [False, True, False, True] for row in rows[:4])
    assert all([cell == "-" for cell in row[-4:]] == [True, False, True, False] for row in rows[4:])


def test_decode_is_the_default(found: Run) -> None:
    """One token at a time, all others come from the cache: what merging costs is seen."""
    arguments = ("--ctx", 128, "--chunks", 1, "--no-recall", "--config", "slerp")
    rows = found(*arguments)["rows"]
    assert rows == found(*arguments, "--ubatch", 1)["rows"]
    assert rows[1]["kl_mean"] > found(*arguments, "--ubatch", 64)["rows"][1]["kl_mean"]


def test_current_tokens_are_exact_so_the_ubatch_matters(found: Run) -> None:
    arguments = ("--ctx", 128, "--chunks", 1, "--no-recall", "--config", "slerp")
    assert found(*arguments, "--ubatch", 32)["rows"][1]["kl_mean"] > 1e-3
    assert found(*arguments, "--ubatch", 128)["rows"][1]["kl_mean"] < 1e-6


def test_a_cache_that_is_not_merged_is_told(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_models.sliding_window_model(tmp_path / "window.gguf")
    arguments = ["--ctx", "64", "--chunks", "1", "--no-recall", "--threads", "1", "--config", "slerp"]
    assert cli.main(["evaluate", str(model), "--text", str(text), *arguments]) == 0
    out = capsys.readouterr().out
    assert "read one token at a time, as in decode" in out
    assert "note: slerp:start=0.5" in out


def test_recall_is_asked_at_every_distance(found: Run) -> None:
    result = found(
        "--ctx", 64, "--chunks", 1, "--recall", 8, "--recall", 30, "--rounds", 2, "--config", "q4_0"
    )
    for row in result["rows"]:
        assert list(row["recall_by_distance"]) == ["8", "30"]
        assert row["recall_asked"] == 2 * 2 * facts.N_FACTS
        assert row["recall"] == np.mean(list(row["recall_by_distance"].values()))


# ---- what can't be measured


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--ctx", 4096], "too few for 1 x 4096 tokens"),
        (["--ctx", 900, "--chunks", 3], "too few for 3 x 900 tokens"),
        (["--ctx", 0], "--ctx 0: it must be 8 or more"),
        (["--pos-offset", -1], "--pos-offset -1"),
        (["--ubatch", 0], "--ubatch 0"),
        (["--ctx", 64, "--config", "q3_9"], "no cache setting"),
        (["--ctx", 64, "--recall", 5000], "recall over 5000 tokens"),
        (["--ctx", 64, "--recall", 5, "--no-recall"], "contradict"),
        (["--ctx", 64, "--plot", "kl.nothing"], "must end with"),
    ],
)
def test_bad_input_is_told_before_anything_is_loaded(
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
    arguments = ["--ctx", "64", "--chunks", "1", "--pos-offset", "5000", "--no-recall", "--config", "f16"]
    assert cli.main(["evaluate", str(model), "--text", str(text), *arguments]) == 0
    assert "positions 5000 to 5063 go beyond the 4096" in capsys.readouterr().err


def test_a_full_disk_is_told_before(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Reference, "size", lambda *_: 1 << 60)
    assert cli.main(["evaluate", str(model), "--text", str(text), "--ctx", "64"]) == 2
    assert "on disk" in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_told(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["evaluate", str(model), "--plot", str(tmp_path / "kl.png")]) == 2
    assert "minicache-cpp[plot]" in capsys.readouterr().err


def test_a_plot_is_drawn(found: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "kl.svg"
    found("--ctx", 64, "--ctx", 96, "--chunks", 1, "--no-recall", "--config", "q4_0", "--config", "slerp",
          "--plot", path)  # fmt: skip
    drawn = path.read_text()
    assert "<svg" in drawn and drawn.count("q4_0") >= 2


# ---- chunks and divergence


def test_chunks_are_spread_over_the_text() -> None:
    assert material.spread(list(range(10)), 3, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert material.spread(list(range(100)), 10, 2) == [list(range(10)), list(range(90, 100))]
    assert material.spread(list(range(9)), 9, 1) == [list(range(9))]


def test_chunks_begin_as_the_model_wants_it(model: Path, text: Path) -> None:
    settings = Settings([50], [0], [], recall=None)
    chunks = material.prepare(model, text.read_text(), settings).chunks[50]
    assert [len(chunk) for chunk in chunks] == [50] * 4
    assert [chunk[0] for chunk in chunks] == [1] * 4  # <s>
    assert all(1 not in chunk[1:] for chunk in chunks)


def test_divergence_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((2, 40, 30)).astype(np.float32) * 4
    p, q = (np.exp(one.astype(np.float64)) for one in logits)
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    reference, ours = map(log_probabilities, logits)
    kl = (p * np.log(p / q)).sum(axis=1)
    assert np.allclose(kl_divergence(reference, ours), kl, rtol=1e-4)
    total = Divergence()
    following = rng.integers(30, size=40).tolist()
    total.add(reference[:25], ours[:25], following[:25])
    total.add(reference[25:], ours[25:], following[25:39])  # nothing follows the last token
    summary = total.summary()
    assert total.n_tokens == 40
    assert summary["kl_mean"] == pytest.approx(kl.mean(), rel=1e-4)
    assert summary["top1"] == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert summary["ppl"] == pytest.approx(np.exp(-np.log(q[np.arange(39), following[:39]]).mean()), rel=1e-4)


def test_tokens_that_cant_come_add_nothing() -> None:
    reference = log_probabilities(np.array([[0.0, 1.0, -np.inf]], np.float32))
    assert kl_divergence(reference, reference) == 0
    assert np.isinf(kl_divergence(log_probabilities(np.zeros((1, 3), np.float32)), reference))


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


# ---- planted facts


class Letters:
    """A vocabulary whose tokens are letters, with a beginning of text."""

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        return list(map(ord, text))

    def begun(self, tokens: list[int]) -> list[int]:
        return [0, *tokens]

    def detokenize(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


class Memory:
    """A reader that answers from the last `span` letters it has read, and from nothing else."""

    def __init__(self, span: int) -> None:
        self.span = span
        self.held: list[int] = []
        self.first = 0

    def clear(self) -> None:
        self.held = []

    def read(self, tokens: Sequence[int], position: int) -> None:
        if not self.held:
            self.first = position
        assert position == self.first + len(self.held)
        self.held += tokens

    def mark(self) -> None:
        self.marked = len(self.held)

    def back(self) -> None:
        del self.held[self.marked :]

    def likeliest(self, tokens: Sequence[int], position: int, n_last: int) -> list[int]:
        self.read(tokens, position)
        told = "".join(map(chr, self.held[-self.span :]))
        asked = told[told.rindex("The ") : len(told) - n_last + 1].rstrip()
        _, found, rest = told.partition(asked + " ")
        value = " " + rest.partition(".")[0] if found and "." in rest else ""
        return list(map(ord, value[:n_last].ljust(n_last)))


CHATML = ChatTemplate.from_source(
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}<assistant>", "", ""
)
PROSE = list(map(ord, "It rained for nine days, and nobody came. " * 60))


@pytest.mark.parametrize("template", [CHATML, ChatTemplate.from_source(None, "", "")])
@pytest.mark.parametrize("position", [0, 7000])
def test_recall_counts_what_is_within_reach(template: ChatTemplate, position: int) -> None:
    near, far = (facts.make_tasks(Letters(), template, PROSE, distance, 3) for distance in (50, 2000))
    assert facts.recall(Memory(10_000), far, position) == (24, 24)
    assert facts.recall(Memory(1000), near, position) == (24, 24)
    assert facts.recall(Memory(1000), far, position) == (0, 24)


def test_a_task_says_its_facts_once_and_shares_them(monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = facts.make_tasks(Letters(), CHATML, PROSE, 300, 1)
    told = "".join(map(chr, task.told))
    assert told.startswith("\0<user>The ")
    assert 300 < len(told) < 300 + 8 * 50 + 100
    assert len(task.questions) == facts.N_FACTS
    for question in task.questions:
        asked = "".join(map(chr, question.tokens))
        statement = asked[asked.rindex("The ") :] + "."
        assert told.count(statement) == 1
        assert asked[-question.n_value :] == " " + statement.split()[-1].rstrip(".")
    assert task.n_tokens == len(task.told) + max(len(question.tokens) for question in task.questions)


def test_facts_differ_in_place_and_value() -> None:
    (task,) = facts.make_tasks(Letters(), CHATML, PROSE, 10, 1)
    values = {tuple(question.tokens[-question.n_value :]) for question in task.questions}
    assert len(values) == facts.N_FACTS
    again = facts.make_tasks(Letters(), CHATML, PROSE, 10, 1)
    assert again == [task]  # every configuration is asked the same


@pytest.mark.parametrize("spec", ["q8_0", "slerp:start=0"])
def test_a_real_context_forgets_one_question_before_the_next(model: Path, spec: str) -> None:
    told, asked = tiny_models.prompt(70), tiny_models.prompt(20, seed=5)

    def answer(context: ScoredContext) -> Any:
        return np.concatenate([logits.copy() for _, logits in context.decode(asked, 100, 0)])

    with (
        NativeModel(model) as loaded,
        ScoredContext(loaded, CacheSpec.parse(spec), 256, 16, 1) as context,
    ):
        context.read(told, 30)
        context.mark()
        first = answer(context)
        for _ in range(3):
            context.back()
            assert llama_h.llama_memory_seq_pos_max(context.memory, 0) == 99
            context.likeliest(tiny_models.prompt(40, seed=6), 100, 1)  # another question
            context.back()
            assert np.array_equal(answer(context), first)


def test_the_vocabulary_gives_text_back(demo_model: Path) -> None:
    with Vocabulary(demo_model) as vocabulary:
        tokens = vocabulary.tokenize("Grüße,\n\tworld <|im_end|>")
        assert vocabulary.detokenize(tokens) == "Grüße,\n\tworld "
        assert (
            len(vocabulary.tokenize("<|im_end|>"))
            == 1
            < len(vocabulary.tokenize("<|im_end|>", special=False))
        )
        assert not vocabulary.chat_template().is_plain


def test_a_model_without_a_vocabulary_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_models, "add_tokenizer", lambda writer: writer.add_tokenizer_model("no_vocab"))
    path = tiny_models.random_model().write(tmp_path / "mute.gguf")
    with pytest.raises(MiniCacheError, match="no vocabulary"):
        Vocabulary(path)


def test_positions_that_a_model_lacks_are_refused(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    from minicache_cpp.modelfile.gguf_file import read_gguf

    file = read_gguf(model)
    monkeypatch.setattr(evaluation, "LEARNED_POSITIONS", (file.architecture,))
    with pytest.raises(MiniCacheError, match="has 4096 positions"):
        evaluation.check_positions(file, Settings([64], [4090], []))

"""Each kind of task: what it puts to a model, and how it scores the answer."""

from __future__ import annotations

import math
import random
import re

import pytest

from minicache_cpp.evaluate.tasks.babi import BuriedStories, Stories, Story, records
from minicache_cpp.evaluate.tasks.blank import Blank
from minicache_cpp.evaluate.tasks.choices import MultipleChoice
from minicache_cpp.evaluate.tasks.gsm8k import WordProblems
from minicache_cpp.evaluate.tasks.kind import FileKind
from minicache_cpp.evaluate.tasks.needle import Needles
from minicache_cpp.evaluate.tasks.registry import FILE_KINDS
from minicache_cpp.evaluate.tasks.retrieval import Buried, Completion
from minicache_cpp.evaluate.tasks.truthfulqa import TruthfulQA
from minicache_cpp.evaluate.tasks.variables import Variables
from support.readers import ScriptedReader

CHOICE = {"question": "Which is a bird?", "choices": ["owl", "a large old oak", "cat"], "answer": 1}
BLANK = {"question": "The cup fell off the _ and broke.", "choices": ["table", "sea"], "answer": 0}
TRUTH = {
    "question": "Is it?",
    "mc1_targets": {"yes": 0, "no": 1},
    "mc2_targets": {"yes": 0, "no": 1, "never": 1},
}
PROBLEM = {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5 tens.\n#### 1,050"}
STORY = {
    "facts": ["Mary took the milk.", "Mary went home."],
    "question": "Where is the milk?",
    "answer": "home",
}


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (CHOICE, "choices"),
        (CHOICE | {"question": "A bird is called an ____."}, "choices"),
        (BLANK, "blank"),
        (TRUTH, "truthfulqa"),
        (PROBLEM, "gsm8k"),
        (STORY, "babi"),
    ],
)
def test_records_are_recognised_by_their_keys(record: dict[str, object], name: str) -> None:
    assert next(kind for kind in FILE_KINDS if kind.recognises(record)).name == name


def test_a_choice_is_made_by_the_sum_and_by_the_sum_over_its_length() -> None:
    kind = MultipleChoice()
    sums = {" owl": -3.0, " a large old oak": -7.5, " cat": -4.0}
    reader = ScriptedReader(lambda before, ending: sums[ending])
    reply = kind.ask(reader, kind.parse(CHOICE), [kind.parse(CHOICE)])
    # per character: -3/3, -7.5/15 and -4/3
    assert reply.answers == {"acc": 0, "acc_norm": 1}
    assert reply.scores == {"acc": 0, "acc_norm": 1}
    assert reply.details == {"right": 1, "log_likelihoods": list(sums.values())}
    question = "Question: Which is a bird?\nAnswer:"
    assert [before for before, _ in reader.asked] == [f"{question} a large old oak\n\n{question}"] * 3


def test_a_blank_is_filled_in_and_the_rest_scored() -> None:
    kind = Blank()
    reader = ScriptedReader(lambda before, ending: -2.0 if before.endswith("table") else -5.0)
    example = kind.parse({"question": "_ sang.", "choices": ["She", "Tea"], "answer": 0})
    reply = kind.ask(reader, kind.parse(BLANK), [example])
    assert reader.asked == [
        ("She sang.\nThe cup fell off the table", " and broke."),
        ("She sang.\nThe cup fell off the sea", " and broke."),
    ]
    assert (reply.scores, reply.answers) == ({"acc": 1}, {"acc": 0})


def test_truth_is_the_likeliest_answer_and_the_share_of_true_ones() -> None:
    kind = TruthfulQA()
    p = {" yes": 0.5, " no": 0.2, " never": 0.1}
    reader = ScriptedReader(lambda before, ending: math.log(p[ending]) - 2000)  # e^-2000 is no double
    reply = kind.ask(reader, kind.parse(TRUTH), [kind.parse(TRUTH)])
    assert reply.scores["mc1"] == 0
    assert reply.scores["mc2"] == pytest.approx(0.3 / 0.8)
    assert reply.answers == {"mc1": 0}
    assert reader.asked[0] == ("Q: Is it?\nA: no\n\nQ: Is it?\nA:", " yes")


@pytest.mark.parametrize(
    ("written", "right", "answer"),
    [
        ("There are 3 boxes of 350, so 1050.", 1, "1050"),
        ("It is $1,050.00.", 1, "1050"),
        ("1050 in 2 days", 0, "2"),
        ("It is -1050", 0, "-1050"),
        ("Between 1000-1050", 1, "1050"),
        ("I do not know.", 0, ""),
    ],
)
def test_the_last_number_of_a_solution_counts(written: str, right: float, answer: str) -> None:
    kind = WordProblems()
    reader = ScriptedReader(continuation=lambda prompt: written)
    reply = kind.ask(reader, kind.parse(PROBLEM), [kind.parse(PROBLEM)])
    assert (reply.scores, reply.answers) == ({"acc": right}, {"acc": answer})
    ((prompt, n_most, _),) = reader.prompts
    assert n_most == 320
    turns = re.split(r"<(?=user|assistant)", prompt)
    assert turns[1].startswith("user>How many?\nSolve this")
    assert turns[2] == "assistant>2 + 3 = 5 tens.\n1050\n"
    assert turns[3:] == [turns[1], "assistant>"]


def test_a_story_is_a_sentence_to_complete() -> None:
    kind = Stories()
    reader = ScriptedReader(continuation=lambda prompt: " Home, where it stayed.")
    reply = kind.ask(reader, kind.parse(STORY), [kind.parse(STORY)])
    told = "Mary took the milk. Mary went home. The milk is in the"
    assert reader.prompts == [(f"{told} home.\n\n{told}", len("home") + 2, ("\n",))]
    assert (reply.scores, reply.answers) == ({"acc": 1}, {"acc": "home"})


@pytest.mark.parametrize(
    ("question", "begun"),
    [
        ("Where is Mary?", "Mary is in the"),
        ("Where was the apple before the kitchen?", "Before the kitchen, the apple was in the"),
        ("Is Mary in the kitchen?", "Question: Is Mary in the kitchen?\nAnswer:"),
    ],
)
def test_each_question_of_babi_has_a_beginning_of_its_answer(question: str, begun: str) -> None:
    assert Story(("",), question, "x").begun == begun


def test_stories_begin_anew_at_line_number_one() -> None:
    lines = ["1 A went home.", "2 Where is A? \thome\t1", "3 B sang.", "4 Where is B?|town|3",
             "1 C slept.", "2 Where is C? \tbed\t1"]  # fmt: skip
    assert list(records(lines)) == [
        (2, {"facts": ["A went home."], "question": "Where is A?", "answer": "home"}),
        (4, {"facts": ["A went home.", "B sang."], "question": "Where is B?", "answer": "town"}),
        (6, {"facts": ["C slept."], "question": "Where is C?", "answer": "bed"}),
    ]


@pytest.mark.parametrize(
    ("written", "right"),
    [(" 4821.", 1), ("4821", 1), (" 4821, and", 1), (" 48213", 0), (" 4822", 0), ("", 0), (" x 4821", 0)],
)
def test_a_completion_is_right_when_it_begins_with_the_whole_value(written: str, right: float) -> None:
    reader = ScriptedReader(continuation=lambda prompt: written)
    reply = Completion("needle").ask(reader, Buried("The number is", "4821"))
    assert reply.scores == {"acc": right}
    assert reply.answers == {"acc": "4821" if right else written.strip()}
    assert reader.prompts == [("The number is", 6, ("\n",))]


@pytest.mark.parametrize("n", [1, 4])
def test_needles_have_different_keys_and_the_asked_one_its_depth(n: int) -> None:
    planted = Needles("needles", n).plant(random.Random(5), 0.3)
    assert len(planted.facts) == n
    assert list(planted.facts) == sorted(planted.facts)
    assert [depth for depth, fact in planted.facts if planted.question in fact] == [0.3]
    assert (0.3, f"{planted.question} {planted.answer}.") in planted.facts
    assert re.fullmatch(r"The special number for [a-z]+-[a-z]+ is", planted.question)
    assert len({fact.rpartition(" ")[0] for _, fact in planted.facts}) == n
    assert len({fact.rpartition(" ")[2] for _, fact in planted.facts}) == n


def test_a_chain_leads_back_to_its_number() -> None:
    planted = Variables().plant(random.Random(5), 0.4)
    assert [depth for depth, _ in planted.facts] == pytest.approx([0.4, 0.6, 0.8])
    values = dict(re.fullmatch(r"(VAR \w+) = (.+)\.", fact).groups() for _, fact in planted.facts)  # type: ignore[union-attr]
    at = planted.question.removesuffix(" =")
    found = []
    while at in values:
        at = values[at]
        found.append(at)
    assert planted.answer == " = ".join(found)
    assert len(found) == 3 and found[-1].isdigit()
    assert planted.opening.endswith("VAR EZF = VAR CYD. VAR EZF = VAR CYD = VAR AXB = 70412.\n\n")


def test_buried_stories_keep_the_order_of_their_facts() -> None:
    story = Story(("One.", "Two.", "Three.", "Four."), "Where is Mary?", "hall")
    planted = BuriedStories([story]).plant(random.Random(5), 0.2)
    assert [fact for _, fact in planted.facts] == list(story.facts)
    assert [depth for depth, _ in planted.facts] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert (planted.question, planted.answer) == ("Mary is in the", "hall")


@pytest.mark.parametrize("kind", FILE_KINDS, ids=lambda kind: kind.name)
def test_every_kind_scores_each_of_its_metrics(kind: FileKind) -> None:
    record = {"choices": CHOICE, "blank": BLANK, "truthfulqa": TRUTH, "gsm8k": PROBLEM, "babi": STORY}[
        kind.name
    ]
    reply = kind.ask(ScriptedReader(), kind.parse(record), [])
    assert set(reply.scores) == set(kind.metrics)
    assert set(reply.answers) <= set(kind.metrics)

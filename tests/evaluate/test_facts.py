"""Facts planted in a text, and how many of them are recalled."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from minicache_cpp.evaluate import facts
from minicache_cpp.text.chat_template import ChatTemplate


class Letters:
    """A vocabulary whose tokens are letters, and which begins texts with token 0."""

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        return list(map(ord, text))

    def begun(self, tokens: list[int]) -> list[int]:
        return [0, *tokens]

    def detokenize(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


class Memory:
    """A reader that answers only from the last `span` letters it has read."""

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
    assert again == [task]  # every configuration gets the same questions

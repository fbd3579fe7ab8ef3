"""Planted facts: stated first and asked for after a stretch of prose, so that only the cache can hold them."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..errors import MiniCacheError
from ..text.chat_template import ChatTemplate

N_FACTS = 8  # stated together; each is asked for


class Tokenizer(Protocol):
    """What of a Vocabulary is used here."""

    def tokenize(self, text: str, special: bool = True) -> list[int]: ...
    def begun(self, tokens: list[int]) -> list[int]: ...
    def detokenize(self, tokens: list[int]) -> str: ...


class Reader(Protocol):
    """What of a ScoredContext is used here."""

    def clear(self) -> None: ...
    def read(self, tokens: Sequence[int], position: int) -> None: ...
    def likeliest(self, tokens: Sequence[int], position: int, n_last: int) -> list[int]: ...
    def mark(self) -> None: ...
    def back(self) -> None: ...


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# the demo models were trained with these words and this form of sentence; for other models any would do
VALUES = _words("""
red blue green yellow orange purple violet brown black white gray pink silver gold copper bronze cat dog
horse cow sheep goat wolf fox bear lion tiger eagle hawk owl swan duck apple pear plum cherry grape lemon
melon peach olive onion carrot bean rice corn wheat honey spring summer autumn winter monday friday river
ocean mountain forest cloud rain snow wind fire stone
""")
PLACES = _words("""
harbor lantern garden bridge tower castle market station library museum kitchen cellar island valley
village temple engine printer router cabinet drawer locker vault gate door window boat ship train wagon
office school theater factory bakery studio workshop warehouse lighthouse mill tunnel tent cabin hotel
""")
ATTRIBUTES = ("password", "code word", "color", "symbol", "signal", "key")


@dataclass(frozen=True)
class Fact:
    """A statement, the question for it, the answer up to the value, and the value."""

    statement: str
    question: str
    before: str
    value: str


@dataclass(frozen=True)
class Question:
    """The tokens that distinguish one question's conversation; the last `n_value` are the right answer."""

    tokens: list[int]
    n_value: int


@dataclass(frozen=True)
class RecallTask:
    """Facts and the questions about them, which begin with the same tokens."""

    told: list[int]  # the facts and the prose after them
    questions: list[Question]

    @property
    def n_tokens(self) -> int:
        return len(self.told) + max(len(question.tokens) for question in self.questions)


def make_facts(rng: random.Random, n: int = N_FACTS) -> list[Fact]:
    """Facts of one kind with different places and values, so that only the right place finds the value."""
    attribute = rng.choice(ATTRIBUTES)
    facts = []
    for place, value in zip(rng.sample(PLACES, n), rng.sample(VALUES, n), strict=True):
        key = f"{attribute} of the {place}"
        facts.append(Fact(f"The {key} is {value}.", f"What is the {key}?", f"The {key} is", value))
    return facts


def conversation(template: ChatTemplate, facts: Sequence[Fact], prose: str, asked: Fact) -> str:
    """The text up to where the value of the fact that is asked for comes next."""
    told = " ".join(fact.statement for fact in facts)
    if template.is_plain:
        return f"{told}\n\n{prose}\n\nQuestion: {asked.question}\nAnswer: {asked.before}"
    messages = [
        {"role": "user", "content": told},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": f"Read this. {prose}"},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": asked.question},
    ]
    return template.render(messages) + asked.before


def make_task(vocabulary: Tokenizer, template: ChatTemplate, facts: Sequence[Fact], prose: str) -> RecallTask:
    """A conversation for each fact, cut where they differ, so that what they share is read only once."""
    whole, n_values = [], []
    for fact in facts:
        asked = conversation(template, facts, prose, fact)
        before = vocabulary.begun(vocabulary.tokenize(asked))
        tokens = vocabulary.begun(vocabulary.tokenize(f"{asked} {fact.value}"))
        whole.append(tokens)
        # the value's tokens begin after those that the text without the value has too
        n_values.append(len(tokens) - _n_common([before, tokens]))
    n_told = _n_common(whole)
    return RecallTask(
        whole[0][:n_told],
        [Question(tokens[n_told:], n) for tokens, n in zip(whole, n_values, strict=True)],
    )


def make_tasks(
    vocabulary: Tokenizer, template: ChatTemplate, text: list[int], distance: int, rounds: int
) -> list[RecallTask]:
    """`rounds` tasks with about `distance` tokens of the text between facts and questions; the same at every call."""
    if len(text) < distance:
        raise MiniCacheError(
            f"recall over {distance} tokens needs as many tokens of text, and there are {len(text)}; "
            "give more --text, or a smaller --recall"
        )
    rng = random.Random(distance)
    tasks = []
    for _ in range(rounds):
        facts = make_facts(rng)
        start = rng.randint(0, len(text) - distance)
        prose = vocabulary.detokenize(text[start : start + distance]).strip()
        tasks.append(make_task(vocabulary, template, facts, prose))
    return tasks


def recall(context: Reader, tasks: Sequence[RecallTask], position: int = 0) -> tuple[int, int]:
    """(right answers, questions): an answer is right when greedy decoding yields the value, token by token."""
    right = asked = 0
    for task in tasks:
        context.clear()
        context.read(task.told, position)
        context.mark()
        behind = position + len(task.told)
        for question in task.questions:
            value = question.tokens[-question.n_value :]
            right += context.likeliest(question.tokens[:-1], behind, question.n_value) == value
            asked += 1
            context.back()  # a question must not see the one before it
    return right, asked


def _n_common(sequences: Sequence[list[int]]) -> int:
    return len(os.path.commonprefix(sequences))  # noqa: RUF071  (element by element is what is wanted)

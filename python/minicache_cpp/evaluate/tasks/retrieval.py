"""Retrieval from a long text: what is hidden in it, and the completion that only finding it gives.

A small model answers a question about a text badly, but continues a sentence whose beginning it has read before. So
each kind of retrieval ends its prompt with the beginning of such a sentence, and the answer is right when greedy
decoding continues it with the hidden words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .kind import Reader, Reply


@dataclass(frozen=True)
class Planted:
    """Sentences to hide in a text, and what is asked about them."""

    # (depth, sentence) in ascending depth: 0 is the beginning of the text, 1 its end
    facts: tuple[tuple[float, str], ...]
    # the beginning of the sentence to complete, and its rest
    question: str
    answer: str
    # stands before the text: an example of the form
    opening: str = ""


class Retrieval(Protocol):
    """A kind of retrieval."""

    name: str

    def plant(self, rng: random.Random, depth: float) -> Planted:
        """What one item hides, with the sentence that is asked for at this depth."""
        ...


@dataclass(frozen=True)
class Buried:
    """One item: a text with hidden sentences, up to where the answer comes next."""

    prompt: str
    answer: str


class Completion:
    """Asks for the continuation of a text; `acc` is 1 where it begins with the right words."""

    metrics: tuple[str, ...] = ("acc",)

    def __init__(self, name: str) -> None:
        self.name = name

    def ask(self, reader: Reader, item: Buried, examples: Sequence[Any] = ()) -> Reply:
        found = reader.complete(item.prompt, n_most(item.answer), ("\n",)).strip()
        right = re.match(rf"{re.escape(item.answer)}(?!\w)", found, re.IGNORECASE) is not None
        # what comes after the right words is no difference between caches
        answer = item.answer if right else found
        return Reply({"acc": float(right)}, {"acc": answer}, {"right": item.answer, "written": found})


def n_most(answer: str) -> int:
    """The tokens that are decoded for an answer: enough for it in any vocabulary, and for what would lengthen it."""
    return len(answer.encode("utf-8")) + 2


def onwards(depth: float, sentences: Sequence[str]) -> tuple[tuple[float, str], ...]:
    """The sentences in their order, spread evenly from a depth on towards the end of the text."""
    step = (1 - depth) / len(sentences)
    return tuple((depth + number * step, sentence) for number, sentence in enumerate(sentences))

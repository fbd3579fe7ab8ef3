"""bAbI's stories (Weston et al. 2015, arXiv 1502.05698), by themselves or hidden in a long text, as in BABILong.

A line of a file is "1 Mary moved to the bathroom." or "3 Where is Mary? <tab> bathroom <tab> 1"; a number 1 begins
another story. A question is asked as a sentence to complete ("Mary is in the"), after the facts of its story so far.
Hidden in a text (BABILong; Kuratov et al. 2024, arXiv 2406.10149), the facts keep their order, the first stands at the
stated depth, and the others are spread evenly behind it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .kind import BadItem, Reader, Reply, text_of
from .retrieval import Buried, Completion, Planted, onwards

LINE = re.compile(r"(\d+)\s+(.*\S)")
# a question, and the beginning of its answer
FORMS = (
    (re.compile(r"Where is (.+)\?"), "{0} is in the"),
    (re.compile(r"Where was (.+) before (.+)\?"), "Before {1}, {0} was in the"),
)


@dataclass(frozen=True)
class Story:
    """A question and the facts before it."""

    facts: tuple[str, ...]
    question: str
    answer: str

    @property
    def begun(self) -> str:
        """The beginning of the sentence that answers the question."""
        for pattern, form in FORMS:
            if match := pattern.fullmatch(self.question):
                text = form.format(*match.groups())
                return text[0].upper() + text[1:]
        return f"Question: {self.question}\nAnswer:"


class Stories:
    """Stories by themselves."""

    name = "babi"
    metrics: tuple[str, ...] = ("acc",)

    def recognises(self, record: Mapping[str, Any]) -> bool:
        return {"facts", "question", "answer"} <= record.keys()

    def parse(self, record: Mapping[str, Any]) -> Story:
        if not record["facts"]:
            raise BadItem("a question has no fact before it")
        return Story(tuple(record["facts"]), text_of(record, "question"), text_of(record, "answer"))

    def ask(self, reader: Reader, item: Story, examples: Sequence[Story]) -> Reply:
        shown = "".join(f"{_told(one)} {one.answer}.\n\n" for one in examples)
        return Completion(self.name).ask(reader, Buried(shown + _told(item), item.answer))


class BuriedStories:
    """Stories hidden in a text, one after the other."""

    name = "babi"

    def __init__(self, stories: Sequence[Story]) -> None:
        self.stories = stories

    def plant(self, rng: random.Random, depth: float) -> Planted:
        story = rng.choice(self.stories)
        return Planted(onwards(depth, story.facts), story.begun, story.answer)


def records(lines: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of each question in a file of stories; raises BadItem where a line has no number."""
    facts: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = LINE.match(line)
        if match is None:
            raise BadItem(f"line {number}: neither an object of JSON nor a numbered line of bAbI")
        if match[1] == "1":
            facts = []
        question, *rest = re.split(r"\s*[\t|]\s*", match[2])
        if rest:
            yield number, {"facts": list(facts), "question": question.strip(), "answer": rest[0]}
        else:
            facts.append(question)


def _told(story: Story) -> str:
    return f"{' '.join(story.facts)} {story.begun}"

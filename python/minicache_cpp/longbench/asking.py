"""Puts LongBench's questions to a model, and scores its answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import MiniCacheError
from ..host.progress import OnStep
from ..reading.text_model import TextModel
from .items import Item
from .metrics import best
from .tasks import Task


class Asking:
    """Puts questions to one model with one cache."""

    def __init__(self, model: TextModel, name: str, on_step: OnStep = lambda step: None) -> None:
        self.model, self.name, self.on_step = model, name, on_step
        self.truncated: dict[str, int] = {}  # questions whose text had to be cut, by task

    def answers(self, name: str, task: Task, items: list[Item]) -> list[str]:
        """The model's answers to a task's questions."""
        self.truncated[name] = 0
        answers = []
        for number, item in enumerate(items, 1):
            self.on_step(f"{self.name}: {name}, {number} of {len(items)}")
            tokens, cut = self.prompt(task, item)
            self.truncated[name] += cut
            answers.append(self.model.generate(tokens, task.n_most, [task.stop]))
        return answers

    def prompt(self, task: Task, item: Item) -> tuple[list[int], bool]:
        """The question as tokens, and whether its middle was cut out to fit the context."""
        vocabulary, room = self.model.vocabulary, self.model.n_ctx - task.n_most
        # not str.format: a user's prompt may have other braces
        text = re.sub(r"\{(context|input)\}", lambda match: str(getattr(item, match[1])), task.prompt)
        whole = self.tokens(task, text)
        if len(whole) <= room:
            return whole, False
        around = len(self.tokens(task, ""))
        tokens = vocabulary.tokenize(text, special=False)
        # made into tokens again, the joined halves can be a few tokens longer
        for spare in range(0, room, 16):
            half = max(1, (room - around - spare) // 2)
            text = vocabulary.detokenize(tokens[:half]) + vocabulary.detokenize(tokens[-half:])
            if len(cut := self.tokens(task, text)) <= room:
                return cut, True
        raise MiniCacheError(
            f"a context of {self.model.n_ctx} tokens has no room for a question and an answer of {task.n_most}; "
            "take a larger --ctx"
        )

    def tokens(self, task: Task, text: str) -> list[int]:
        """The text as the model reads it, in its chat template where the task asks for that."""
        vocabulary, template = self.model.vocabulary, self.model.template
        if not task.chat or template.is_plain:
            return vocabulary.begun(vocabulary.tokenize(text, special=False))
        return vocabulary.begun(vocabulary.tokenize(template.render([{"role": "user", "content": text}])))


def score(task: Task, answer: str, item: Item) -> float:
    """A share in [0, 1], by the task's metric."""
    if task.first_line:
        answer = answer.lstrip("\n").split("\n")[0]
    return best(task.metric, answer, item.answers, item.classes)


def mean_score(task: Task, answers: Sequence[str], items: Sequence[Item]) -> float:
    """The mean over a task's questions, in per cent, as LongBench gives it."""
    return 100 * sum(score(task, *one) for one in zip(answers, items, strict=True)) / len(items)

"""Multiple choice: {"question": text, "choices": [texts], "answer": index}, as ARC, OpenBookQA and PIQA are kept here.

The answer is the choice that the model finds likeliest after the question. `acc` compares the sums of the
log-likelihoods of the tokens, `acc_norm` these sums divided by the characters of the choice, which does not favour
short ones: the two metrics of lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .kind import BadItem, Reader, Reply, likeliest, text_of


@dataclass(frozen=True)
class Choice:
    """One item."""

    question: str
    choices: tuple[str, ...]
    answer: int  # the index of the right choice


class MultipleChoice:
    name = "choices"
    metrics: tuple[str, ...] = ("acc", "acc_norm")

    def recognises(self, record: Mapping[str, Any]) -> bool:
        return {"question", "choices", "answer"} <= record.keys()

    def parse(self, record: Mapping[str, Any]) -> Choice:
        choices, answer = record.get("choices"), record.get("answer")
        if not isinstance(choices, list) or len(choices) < 2:
            raise BadItem("'choices' is not a list of two texts or more")
        if not all(isinstance(choice, str) and choice.strip() for choice in choices):
            raise BadItem("a choice is not a text")
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise BadItem(
                f"'answer' is {answer!r} and not the index of one of {len(choices)} choices, from 0"
            )
        return Choice(text_of(record, "question"), tuple(choice.strip() for choice in choices), answer)

    def ask(self, reader: Reader, item: Choice, examples: Sequence[Choice]) -> Reply:
        shown = "".join(f"{_asked(one)} {one.choices[one.answer]}\n\n" for one in examples)
        prompt = shown + _asked(item)
        sums = reader.likelihoods([(prompt, f" {choice}") for choice in item.choices])
        by_length = [total / len(choice) for total, choice in zip(sums, item.choices, strict=True)]
        answers = {"acc": likeliest(sums), "acc_norm": likeliest(by_length)}
        scores = {metric: float(answer == item.answer) for metric, answer in answers.items()}
        return Reply(scores, dict(answers), {"right": item.answer, "log_likelihoods": sums})


def _asked(item: Choice) -> str:
    return f"Question: {item.question}\nAnswer:"

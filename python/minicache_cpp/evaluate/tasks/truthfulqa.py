"""TruthfulQA's multiple choice (Lin et al. 2022, arXiv 2109.07958), as its mc_task.json has it.

{"question": text, "mc1_targets": {answer: 0 or 1, …}, "mc2_targets": {answer: 0 or 1, …}}, where 1 marks a true answer.
`mc1` is 1 where the likeliest of the first answers is the true one, `mc2` the share of the probability of the second
answers that the true ones have: the sum of p over the true answers divided by the sum of p over all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .kind import BadItem, Reader, Reply, likeliest, text_of


@dataclass(frozen=True)
class Truth:
    """One item: answers, and whether each is true."""

    question: str
    mc1: tuple[tuple[str, bool], ...]
    mc2: tuple[tuple[str, bool], ...]


class TruthfulQA:
    name = "truthfulqa"
    metrics: tuple[str, ...] = ("mc1", "mc2")

    def recognises(self, record: Mapping[str, Any]) -> bool:
        return {"question", "mc1_targets", "mc2_targets"} <= record.keys()

    def parse(self, record: Mapping[str, Any]) -> Truth:
        item = Truth(
            text_of(record, "question"), _targets(record, "mc1_targets"), _targets(record, "mc2_targets")
        )
        if sum(true for _, true in item.mc1) != 1:
            raise BadItem("'mc1_targets' has not exactly one true answer")
        return item

    def ask(self, reader: Reader, item: Truth, examples: Sequence[Truth]) -> Reply:
        shown = "".join(f"{_asked(one)} {_true(one)}\n\n" for one in examples)
        prompt = shown + _asked(item)
        targets = item.mc1 + item.mc2
        sums = reader.likelihoods([(prompt, f" {answer}") for answer, _ in targets])
        first, second = sums[: len(item.mc1)], sums[len(item.mc1) :]
        answer = likeliest(first)
        # in parts of the largest p, as p itself may be too small a number
        parts = [math.exp(one - max(second)) for one in second]
        true = sum(part for part, (_, is_true) in zip(parts, item.mc2, strict=True) if is_true)
        return Reply(
            {"mc1": float(item.mc1[answer][1]), "mc2": true / sum(parts)},
            {"mc1": answer},
            {"mc1_log_likelihoods": first, "mc2_log_likelihoods": second},
        )


def _targets(record: Mapping[str, Any], key: str) -> tuple[tuple[str, bool], ...]:
    targets = record.get(key)
    if not isinstance(targets, dict) or not targets or not all(mark in (0, 1) for mark in targets.values()):
        raise BadItem(f"{key!r} is not an object of answers with 0 or 1")
    if 1 not in targets.values():
        raise BadItem(f"{key!r} has no true answer")
    return tuple((answer, bool(mark)) for answer, mark in targets.items())


def _true(item: Truth) -> str:
    return next(answer for answer, true in item.mc1 if true)


def _asked(item: Truth) -> str:
    return f"Q: {item.question}\nA:"

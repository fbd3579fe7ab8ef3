"""Fill in the blank: as `choices`, with one "_" in the question that stands for the choice, as WinoGrande has it.

The rest of the sentence is scored after each choice has been put in the blank (partial evaluation; Trinh and Le 2018,
arXiv 1806.02847). The same text is scored each time, so its length does not matter, and `acc` is the only metric.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .choices import Choice, MultipleChoice
from .kind import BadItem, Reader, Reply, likeliest

# several underscores are a line to write on, so such an item is asked as a question
BLANK = re.compile(r"(?<!\w)_(?!\w)")


class Blank(MultipleChoice):
    name = "blank"
    metrics: tuple[str, ...] = ("acc",)

    def recognises(self, record: Mapping[str, Any]) -> bool:
        return super().recognises(record) and len(BLANK.findall(str(record["question"]))) == 1

    def parse(self, record: Mapping[str, Any]) -> Choice:
        item = super().parse(record)
        if len(BLANK.findall(item.question)) != 1:
            raise BadItem("the question has no single blank, a '_', as the first item of the file has")
        return item

    def ask(self, reader: Reader, item: Choice, examples: Sequence[Choice]) -> Reply:
        shown = "".join(f"{one.choices[one.answer].join(BLANK.split(one.question))}\n" for one in examples)
        before, after = BLANK.split(item.question)
        sums = reader.likelihoods([(shown + before + choice, after) for choice in item.choices])
        answer = likeliest(sums)
        return Reply(
            {"acc": float(answer == item.answer)},
            {"acc": answer},
            {"right": item.answer, "log_likelihoods": sums},
        )

"""Word problems of GSM8K's form (Cobbe et al. 2021, arXiv 2110.14168): {"question": text, "answer": "… #### number"}.

The model writes its answer greedily, in its own chat template. `acc` compares the last number of the answer with the
number after "####", as values, so that 1,000 and 1000.0 are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .kind import BadItem, Reader, Reply, text_of

N_MOST = 320  # tokens of an answer; GSM8K's own have 100 on average
NUMBER = re.compile(r"(?<!\d)-?\d[\d,]*(?:\.\d+)?")  # the hyphen of 10-12 is no sign
CALCULATION = re.compile(r"<<.*?>>")  # marks for a calculator, which a model need not imitate
REQUEST = "Solve this step by step, and end with the number that is the answer."


@dataclass(frozen=True)
class Problem:
    """One item."""

    question: str
    solution: str
    number: float


class WordProblems:
    name = "gsm8k"
    metrics: tuple[str, ...] = ("acc",)

    def recognises(self, record: Mapping[str, Any]) -> bool:
        return "choices" not in record and "####" in str(record.get("answer")) and "question" in record

    def parse(self, record: Mapping[str, Any]) -> Problem:
        solution, mark, number = text_of(record, "answer").rpartition("####")
        if not mark or not NUMBER.fullmatch(number.strip()):
            raise BadItem("'answer' does not end with #### and a number")
        return Problem(
            text_of(record, "question"), CALCULATION.sub("", solution).strip(), value_of(number.strip())
        )

    def ask(self, reader: Reader, item: Problem, examples: Sequence[Problem]) -> Reply:
        messages = []
        for one in examples:
            messages += [_asked(one), {"role": "assistant", "content": f"{one.solution}\n{one.number:.15g}"}]
        template = reader.template
        written = reader.complete(template.render([*messages, _asked(item)]), N_MOST, template.stop)
        numbers = NUMBER.findall(written)
        found = value_of(numbers[-1]) if numbers else None
        return Reply(
            {"acc": float(found == item.number)},
            {"acc": "" if found is None else f"{found:.15g}"},
            {"right": item.number, "written": written},
        )


def value_of(number: str) -> float:
    """The value of a number as people write it, with commas between thousands."""
    return float(number.replace(",", ""))


def _asked(item: Problem) -> dict[str, str]:
    return {"role": "user", "content": f"{item.question}\n{REQUEST}"}

"""LongBench's tasks: how each is asked, how long an answer may be, and which metric scores it.

The prompts are this package's own; `prompts_from` reads LongBench's file config/dataset2prompt.json in their place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import MiniCacheError
from ..text.files import read_text
from . import metrics, prompts
from .metrics import Metric

SUFFIX_E = "_e"  # of the files of LongBench-E, the same tasks with evenly spread lengths


@dataclass(frozen=True)
class Task:
    """How the questions of one task are asked and scored."""

    prompt: str  # with {context} and {input}
    metric: Metric
    n_most: int  # tokens of an answer
    chat: bool = True  # False: examples and code are continued as they stand, without a chat template
    # only the first line of an answer counts: after it the model writes an example of its own
    first_line: bool = False
    stop: str = ""  # a text that ends the answer


TASKS = {
    "narrativeqa": Task(prompts.STORY, metrics.question_f1, 128),
    "qasper": Task(prompts.ARTICLE, metrics.question_f1, 128),
    "multifieldqa_en": Task(prompts.TEXT, metrics.question_f1, 64),
    "multifieldqa_zh": Task(prompts.TEXT_ZH, metrics.question_f1_zh, 64),
    "hotpotqa": Task(prompts.PASSAGES, metrics.question_f1, 32),
    "2wikimqa": Task(prompts.PASSAGES, metrics.question_f1, 32),
    "musique": Task(prompts.PASSAGES, metrics.question_f1, 32),
    "dureader": Task(prompts.PASSAGES_ZH, metrics.summary_zh, 128),
    "gov_report": Task(prompts.REPORT, metrics.summary, 512),
    "qmsum": Task(prompts.MEETING, metrics.summary, 512),
    "multi_news": Task(prompts.NEWS, metrics.summary, 512),
    "vcsum": Task(prompts.MEETING_ZH, metrics.summary_zh, 512),
    "trec": Task(prompts.EXAMPLES, metrics.classification, 64, chat=False, first_line=True),
    "triviaqa": Task(prompts.EXAMPLES, metrics.question_f1, 32, chat=False, first_line=True),
    "samsum": Task(prompts.EXAMPLES, metrics.summary, 128, chat=False, first_line=True, stop="\n"),
    "lsht": Task(prompts.EXAMPLES_ZH, metrics.classification, 64, chat=False, first_line=True),
    "passage_count": Task(prompts.COUNT, metrics.number, 32),
    "passage_retrieval_en": Task(prompts.FIND, metrics.paragraph, 32),
    "passage_retrieval_zh": Task(prompts.FIND_ZH, metrics.paragraph, 32),
    "lcc": Task(prompts.CODE, metrics.code_line, 64, chat=False),
    "repobench-p": Task(prompts.CODE, metrics.code_line, 64, chat=False),
}


def prompts_from(path: Path) -> dict[str, Task]:
    """Returns the tasks with the prompts of a JSON object by task; raises MiniCacheError if the file cannot be used."""
    text = read_text(path, "file of prompts")
    try:
        given = json.loads(text)
        return {name: replace(task, prompt=str(given.get(name, task.prompt))) for name, task in TASKS.items()}
    except (ValueError, AttributeError):
        raise MiniCacheError(f"{path} is not a JSON object of prompts by task") from None


def task_of(name: str) -> str:
    """The task that a file of this name belongs to."""
    return name.removesuffix(SUFFIX_E)

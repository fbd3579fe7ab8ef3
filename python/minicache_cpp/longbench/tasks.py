"""LongBench's tasks: how each is asked, how long an answer may be, and which metric scores it.

The prompts are this package's own and ask for the same form of answer as LongBench's; `prompts_from` reads LongBench's
file config/dataset2prompt.json in their place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import MiniCacheError
from . import metrics
from .metrics import Metric

SUFFIX_E = "_e"  # of the files of LongBench-E, the same tasks with evenly spread lengths


@dataclass(frozen=True)
class Task:
    prompt: str  # with {context} and {input}
    metric: Metric
    n_most: int  # tokens of an answer
    chat: bool = True  # False: examples and code are continued as they stand, without a chat template
    # only the first line of an answer counts: after it the model writes an example of its own
    first_line: bool = False
    stop: str = ""  # a text that ends the answer


PASSAGES = """\
Here are some passages and a question about them.

{context}

Answer the question from these passages, with the answer alone and no other words.

Question: {input}
Answer:"""
STORY = """\
Here is a story and a question about it.

{context}

Answer the question from the story in a short phrase, without explaining it.

Question: {input}
Answer:"""
ARTICLE = """\
Here is a scientific article and a question about it.

{context}

Answer the question from the article in a short phrase or one sentence, without explaining it. Answer a yes/no \
question with "yes" or "no". If the article does not tell, write "unanswerable".

Question: {input}
Answer:"""
TEXT = """\
Read this text.

{context}

Answer the question about the text briefly, with the answer alone.

Question: {input}
Answer:"""
REPORT = """\
Here is a report by a government agency.

{context}

Summarise the report on one page.

Summary:"""
MEETING = """\
Here is the transcript of a meeting.

{context}

Answer this request about the meeting in one or a few sentences.

Request: {input}
Answer:"""
NEWS = """\
Here are several news articles on one matter.

{context}

Summarise them together on one page.

Summary:"""
TEXT_ZH = (
    "请阅读下面的文章。\n\n{context}\n\n请根据文章用中文简短地回答问题，只写答案。\n\n问题：{input}\n答案："
)
PASSAGES_ZH = "请阅读下面的材料。\n\n{context}\n\n请根据材料回答问题。\n\n问题：{input}\n答案："
MEETING_ZH = "下面是一份会议记录。\n\n{context}\n\n请总结会议的主要内容。\n\n总结："
EXAMPLES = "Go on in the way of these examples.\n\n{context}\n{input}"
EXAMPLES_ZH = "请按照例子判断新闻的类别。\n\n{context}\n{input}"
COUNT = """\
Below are paragraphs, some of which stand there more than once.

{context}

How many different paragraphs are there? Answer with the number alone.

Answer:"""
FIND = """\
Below are 30 numbered paragraphs, and after them a summary of one of them.

{context}

Summary: {input}

Which paragraph is it a summary of? Answer in the form "Paragraph 1".

Answer:"""
FIND_ZH = (
    "下面是若干编号的段落，后面是其中一段的摘要。\n\n{context}\n\n摘要：{input}\n\n"
    "这是哪一段的摘要？请按“段落1”的格式回答。\n\n答案："
)
CODE = "Complete the code by its next line.\n\n{context}{input}"

TASKS = {
    "narrativeqa": Task(STORY, metrics.question_f1, 128),
    "qasper": Task(ARTICLE, metrics.question_f1, 128),
    "multifieldqa_en": Task(TEXT, metrics.question_f1, 64),
    "multifieldqa_zh": Task(TEXT_ZH, metrics.question_f1_zh, 64),
    "hotpotqa": Task(PASSAGES, metrics.question_f1, 32),
    "2wikimqa": Task(PASSAGES, metrics.question_f1, 32),
    "musique": Task(PASSAGES, metrics.question_f1, 32),
    "dureader": Task(PASSAGES_ZH, metrics.summary_zh, 128),
    "gov_report": Task(REPORT, metrics.summary, 512),
    "qmsum": Task(MEETING, metrics.summary, 512),
    "multi_news": Task(NEWS, metrics.summary, 512),
    "vcsum": Task(MEETING_ZH, metrics.summary_zh, 512),
    "trec": Task(EXAMPLES, metrics.classification, 64, chat=False, first_line=True),
    "triviaqa": Task(EXAMPLES, metrics.question_f1, 32, chat=False, first_line=True),
    "samsum": Task(EXAMPLES, metrics.summary, 128, chat=False, first_line=True, stop="\n"),
    "lsht": Task(EXAMPLES_ZH, metrics.classification, 64, chat=False, first_line=True),
    "passage_count": Task(COUNT, metrics.number, 32),
    "passage_retrieval_en": Task(FIND, metrics.paragraph, 32),
    "passage_retrieval_zh": Task(FIND_ZH, metrics.paragraph, 32),
    "lcc": Task(CODE, metrics.code_line, 64, chat=False),
    "repobench-p": Task(CODE, metrics.code_line, 64, chat=False),
}


@dataclass(frozen=True)
class Item:
    """One line of a task's file."""

    context: str
    input: str
    answers: list[str]
    classes: list[str]
    length: int
    id: str

    @classmethod
    def of(cls, fields: Any) -> Item:
        return cls(
            context=str(fields["context"]),
            input=str(fields["input"]),
            answers=[str(answer) for answer in fields["answers"]],
            classes=[str(name) for name in fields.get("all_classes") or ()],
            length=int(fields.get("length") or 0),
            id=str(fields.get("_id") or ""),
        )


def prompts_from(path: Path) -> dict[str, Task]:
    """The tasks, with the prompts of a JSON object by task; MiniCacheError where the file cannot be used."""
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
        return {
            name: replace(task, prompt=str(prompts.get(name, task.prompt))) for name, task in TASKS.items()
        }
    except OSError as error:
        raise MiniCacheError(f"{path} can't be read: {error.strerror or error}") from None
    except (ValueError, AttributeError):
        raise MiniCacheError(f"{path} is no JSON object of prompts by task") from None


def find_files(folder: Path, wanted: list[str]) -> dict[str, Path]:
    """The files in a folder by the names of their tasks: those that are wanted, or all there are."""
    if not folder.is_dir():
        raise MiniCacheError(f"--data {folder} is no folder")
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl")) if task_of(path.stem) in TASKS}
    for name in wanted:
        if task_of(name) not in TASKS:
            raise MiniCacheError(f"{name!r} is no task of LongBench; there are {', '.join(TASKS)}")
        if name not in files:
            raise MiniCacheError(f"there is no {name}.jsonl in {folder}")
    if not files:
        raise MiniCacheError(f"no file in {folder} has the name of a task, such as qasper.jsonl")
    return {name: files[name] for name in wanted} if wanted else files


def task_of(name: str) -> str:
    """The task that a file of this name belongs to."""
    return name.removesuffix(SUFFIX_E)


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """The lines of a task's file, or the first ones."""
    items = list(_items(path, limit))
    if not items:
        raise MiniCacheError(f"{path} is empty")
    return items


def _items(path: Path, limit: int | None) -> Iterator[Item]:
    n = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if limit is not None and n >= limit:
                return
            if not line.strip():
                continue
            try:
                yield Item.of(json.loads(line))
            except (ValueError, KeyError, TypeError):
                raise MiniCacheError(
                    f"{path}, line {number}: not an object with context, input and answers"
                ) from None
            n += 1

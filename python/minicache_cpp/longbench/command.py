"""`minicache longbench`: LongBench's tasks (Bai et al. 2023, arXiv 2308.14508) from files, cache by cache."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cache.settings import SPEC_HELP, CacheSpec
from ..errors import MiniCacheError
from ..host.demo_model import demo_model
from ..host.progress import progress
from ..host.threads import default_threads
from ..host.units import mib
from ..options import add_json_option, add_machine_options, add_model_argument, check_numbers
from .metrics import best
from .tasks import TASKS, Item, Task, find_files, prompts_from, read_items, task_of

if TYPE_CHECKING:
    from ..reading.text_model import TextModel

EXAMPLE = "minicache longbench model.gguf --data LongBench/data --task qasper --config f16 --config q4_0"
DEFAULT_SPECS = ("f16", "q8_0", "q4_0", "slerp:type=q4_0")

Progress = Callable[[str], None]


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder of LongBench's files, <task>.jsonl"
    )
    parser.add_argument(
        "--task",
        action="append",
        metavar="TASK",
        help="again and again; with _e for LongBench-E (default: every file there is)",
    )
    parser.add_argument("--config", action="append", metavar="SPEC", help=f"a cache: {SPEC_HELP}")
    parser.add_argument(
        "--ctx",
        type=int,
        default=0,
        metavar="N",
        help="context; longer texts lose their middle (default: what the model was trained for)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="questions of each task (default: all)")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="LongBench's config/dataset2prompt.json (default: ours)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the answers there, as LongBench's eval.py reads them",
    )
    parser.add_argument(
        "--ubatch", type=int, default=64, metavar="N", help="tokens read at a time (default: 64)"
    )
    add_machine_options(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    for name, value in (("limit", args.limit), ("threads", args.threads), ("ubatch", args.ubatch)):
        check_numbers(f"--{name}", [value], 1)
    specs = list(dict.fromkeys(map(CacheSpec.parse, args.config or DEFAULT_SPECS)))
    tasks = prompts_from(args.prompts) if args.prompts else TASKS
    files = find_files(args.data, list(dict.fromkeys(args.task or [])))
    items = {name: read_items(path, args.limit) for name, path in files.items()}
    model = args.model or demo_model()

    from ..reading.text_model import TextModel

    rows = []
    found: dict[str, Any] = {}
    for spec in specs:
        arguments = (args.ctx, args.ubatch, args.threads or default_threads(), args.gpu_layers)
        with TextModel(model, spec, *arguments) as text_model:
            asking = Asking(text_model, spec.name, progress)
            answers = {name: asking.answers(name, tasks[task_of(name)], items[name]) for name in files}
            report, n_ctx = text_model.report(), text_model.n_ctx
        if args.output:
            write_answers(args.output / folder_name(spec.name), answers, items)
        scores = {
            name: 100
            * sum(map(score_of(tasks[task_of(name)]), answers[name], items[name]))
            / len(items[name])
            for name in files
        }
        rows.append(
            {
                "name": spec.name,
                "bytes": report.bytes,
                "ratio": report.ratio,
                "total_ratio": report.total_ratio,
                "scores": scores,
                "average": sum(scores.values()) / len(scores),
                "note": report.note,
            }
        )
        found = {
            "model": str(model),
            "context": n_ctx,
            "ubatch": args.ubatch,
            "prompts": str(args.prompts) if args.prompts else "ours",
            "tasks": {
                name: {
                    "metric": tasks[task_of(name)].metric.__name__,
                    "questions": len(items[name]),
                    "truncated": asking.truncated[name],
                }
                for name in files
            },
            "rows": rows,
        }
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else table(found))
    return 0


class Asking:
    """Puts questions to one model with one cache."""

    def __init__(self, model: TextModel, name: str, told: Progress = lambda text: None) -> None:
        self.model, self.name, self.told = model, name, told
        self.truncated: dict[str, int] = {}  # questions whose text had to be cut, by task

    def answers(self, name: str, task: Task, items: list[Item]) -> list[str]:
        self.truncated[name] = 0
        answers = []
        for number, item in enumerate(items, 1):
            self.told(f"{self.name}: {name}, {number} of {len(items)}")
            tokens, cut = self.prompt(task, item)
            self.truncated[name] += cut
            answers.append(self.model.generate(tokens, task.n_most, [task.stop]))
        return answers

    def prompt(self, task: Task, item: Item) -> tuple[list[int], bool]:
        """The question as tokens, and whether its middle was cut out, where it did not fit."""
        vocabulary, room = self.model.vocabulary, self.model.n_ctx - task.n_most
        # not str.format: LongBench's prompts have no other braces, but a user's may
        text = re.sub(r"\{(context|input)\}", lambda match: str(getattr(item, match[1])), task.prompt)
        whole = self.tokens(task, text)
        if len(whole) <= room:
            return whole, False
        around = len(self.tokens(task, ""))
        tokens = vocabulary.tokenize(text, special=False)
        for spare in range(0, room, 16):  # joined anew, the halves can make a few tokens more
            half = max(1, (room - around - spare) // 2)
            text = vocabulary.detokenize(tokens[:half]) + vocabulary.detokenize(tokens[-half:])
            if len(cut := self.tokens(task, text)) <= room:
                return cut, True
        raise MiniCacheError(
            f"a context of {self.model.n_ctx} tokens has no room for a question and an answer of {task.n_most}; "
            "take a larger --ctx"
        )

    def tokens(self, task: Task, text: str) -> list[int]:
        vocabulary, template = self.model.vocabulary, self.model.template
        if not task.chat or template.is_plain:
            return vocabulary.begun(vocabulary.tokenize(text, special=False))
        return vocabulary.begun(vocabulary.tokenize(template.render([{"role": "user", "content": text}])))


def score_of(task: Task) -> Callable[[str, Item], float]:
    def score(answer: str, item: Item) -> float:
        if task.first_line:
            answer = answer.lstrip("\n").split("\n")[0]
        return best(task.metric, answer, item.answers, item.classes)

    return score


def write_answers(folder: Path, answers: dict[str, list[str]], items: dict[str, list[Item]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, found in answers.items():
            with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
                for answer, item in zip(found, items[name], strict=True):
                    line = {"pred": answer, "answers": item.answers, "all_classes": item.classes,
                            "length": item.length, "_id": item.id}  # fmt: skip
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise MiniCacheError(f"--output {folder}: {error.strerror or error}") from None


def folder_name(spec: str) -> str:
    return re.sub(r"[^\w.=-]+", "_", spec)


def table(found: dict[str, Any]) -> str:
    model, n_ctx = Path(found["model"]).name, found["context"]
    lines = [f"{model}, context {n_ctx}, ubatch {found['ubatch']}; prompts: {found['prompts']}"]
    for name, task in found["tasks"].items():
        cut = f", {task['truncated']} of them cut in the middle" if task["truncated"] else ""
        lines.append(f"{name}: {task['metric']}, {task['questions']} questions{cut}")
    cells = [["cache", "KV", "ratio", "total", *found["tasks"], "average"]]
    for row in found["rows"]:
        cells.append(
            [row["name"], mib(row["bytes"]), f"{row['ratio']:.2f}", f"{row['total_ratio']:.2f}"]
            + [f"{score:.2f}" for score in (*row["scores"].values(), row["average"])]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines.append("")
    for first, *rest in cells:
        numbers = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([f"{first:<{widths[0]}}", *numbers]).rstrip())
    lines += [f"note: {row['name']}: {row['note']}" for row in found["rows"] if row["note"]]
    return "\n".join(lines)

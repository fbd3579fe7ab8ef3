"""`minicache longbench`: LongBench's tasks (Bai et al. 2023, arXiv 2308.14508), read from files, cache by cache."""

from __future__ import annotations

import argparse
import json

from ..cache.checked import add_config_option, checked_specs
from ..cache.settings import CacheSpec
from ..host.output import show
from ..host.paths import path_option
from ..host.progress import StepProgress
from ..host.threads import default_threads
from ..modelfile.gguf_file import read_gguf
from ..models.requested import requested_model
from ..options import (
    add_json_option,
    add_machine_options,
    add_model_argument,
    check_machine_options,
    check_numbers,
)
from .items import find_files, read_items
from .tasks import TASKS, prompts_from, task_of

EXAMPLE = "minicache longbench model.gguf --data LongBench/data --task qasper --config f16 --config q4_0"
DEFAULT_SPECS = ("f16", "q8_0", "q4_0", "slerp:type=q4_0")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_argument(parser)
    parser.add_argument(
        "--data",
        type=path_option,
        required=True,
        metavar="DIR",
        help="folder of LongBench's files, <task>.jsonl",
    )
    parser.add_argument(
        "--task",
        action="append",
        metavar="TASK",
        help="a task's name, with _e for LongBench-E; may be repeated (default: every file there is)",
    )
    add_config_option(parser, "measure")
    parser.add_argument(
        "--ctx",
        type=int,
        default=0,
        metavar="N",
        help="tokens of context; longer texts lose their middle (default: what the model was trained for)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="questions of each task that are asked (default: all)"
    )
    parser.add_argument(
        "--prompts",
        type=path_option,
        metavar="FILE",
        help="LongBench's config/dataset2prompt.json (default: this package's own prompts)",
    )
    parser.add_argument(
        "--output",
        type=path_option,
        metavar="DIR",
        help="write the answers there, as LongBench's eval.py reads them",
    )
    parser.add_argument(
        "--ubatch", type=int, default=64, metavar="N", help="tokens read at a time (default: 64)"
    )
    add_machine_options(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Ask every question of every cache, and print the table or the object."""
    for name, value, least in (("ctx", args.ctx, 0), ("limit", args.limit, 1), ("ubatch", args.ubatch, 1)):
        check_numbers(f"--{name}", [value], least)
    check_machine_options(args)
    specs = list(map(CacheSpec.parse, args.config or DEFAULT_SPECS))
    prompts = prompts_from(args.prompts) if args.prompts else TASKS
    files = find_files(args.data, list(dict.fromkeys(args.task or [])))
    tasks = {name: prompts[task_of(name)] for name in files}
    items = {name: read_items(path, args.limit) for name, path in files.items()}
    file = read_gguf(requested_model(args.model))
    specs = checked_specs(file, specs)

    from ..reading.text_model import TextModel
    from .asking import Asking, mean_score
    from .results import answers_folder, prepare_folders, row_of, table, write_answers

    if args.output:
        prepare_folders(args.output, specs, tasks)

    arguments = (args.ctx, args.ubatch, args.threads or default_threads(), args.gpu_layers)
    rows = []
    truncated: dict[str, int] = {}
    n_ctx = 0
    with StepProgress() as progress:
        for spec in specs:
            with TextModel(file, spec, *arguments) as text_model:
                asking = Asking(text_model, spec.name, progress)
                answers = {name: asking.answers(name, task, items[name]) for name, task in tasks.items()}
                report, n_ctx, truncated = text_model.report(), text_model.n_ctx, asking.truncated
            if args.output:
                write_answers(answers_folder(args.output, spec), answers, items)
            scores = {name: mean_score(task, answers[name], items[name]) for name, task in tasks.items()}
            rows.append(row_of(spec, report, scores))
    found = {
        "model": str(file.path),
        "context": n_ctx,
        "ubatch": args.ubatch,
        "prompts": str(args.prompts) if args.prompts else "ours",
        "tasks": {
            name: {
                "metric": task.metric.__name__,
                "questions": len(items[name]),
                "truncated": truncated[name],
            }
            for name, task in tasks.items()
        },
        "rows": rows,
    }
    show(json.dumps(found, indent=2, ensure_ascii=False) if args.json else table(found))
    return 0

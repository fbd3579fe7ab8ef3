"""The part of `minicache evaluate` that puts tasks to caches: --task and --retrieve."""

from __future__ import annotations

import argparse
import json

from ...cache.checked import checked_specs
from ...errors import MiniCacheError
from ...host.output import show
from ...host.paths import path_option
from ...host.progress import StepProgress
from ...host.threads import default_threads
from ...modelfile.gguf_file import read_gguf
from ...models.requested import requested_model
from ...options import check_machine_options, check_numbers
from ...text import bundled
from ...text.files import read_texts
from ..settings import DEFAULT_CTX, cache_specs
from ..table import finite
from .registry import FILE_KINDS, RETRIEVALS
from .settings import DEFAULT_ITEMS, PROMPT_UBATCH, TaskSettings

DEFAULT_SPECS = ("f16", "q8_0", "q4_0", "slerp:type=q4_0")
DEFAULT_DEPTHS = "0.1,0.5,0.9"


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Tasks, which are put to the caches instead of comparing them on a text."""
    parser.add_argument(
        "--task",
        nargs="+",
        action="extend",
        type=path_option,
        metavar="FILE",
        help="ask a file's items instead of comparing distributions on a text; kinds of file: "
        f"{', '.join(kind.name for kind in FILE_KINDS)} (docs/evaluation.md has their forms)",
    )
    parser.add_argument(
        "--retrieve",
        action="append",
        choices=RETRIEVALS,
        help="ask for what is hidden in the text, at each --ctx and --depth; may be repeated. "
        "needle: one; needles: one of four; variables: a chain of assignments; babi: the stories of a --task file",
    )
    parser.add_argument(
        "--depth",
        action="append",
        metavar="D,D,…",
        help=f"where it is hidden: 0 is the beginning of the text, 1 its end (default: {DEFAULT_DEPTHS})",
    )
    parser.add_argument(
        "--task-limit",
        type=int,
        metavar="N",
        help=f"items of each task (default: all of a file, and {DEFAULT_ITEMS} of a retrieval at each depth)",
    )
    parser.add_argument(
        "--shots",
        type=int,
        metavar="K",
        help="begin every prompt with the first K items of its file and their answers (default: 0); "
        "these are not asked",
    )


def run(args: argparse.Namespace) -> int:
    """Put every task to every cache, and print the table or the object."""
    settings = settings_of(args)
    file = read_gguf(requested_model(args.model))
    checked_specs(file, settings.specs)
    paths = args.text or bundled.evaluation_files()

    from .asking import measure
    from .table import table
    from .task import prepare

    tasks = prepare(file.path, lambda: read_texts(paths), settings)
    with StepProgress() as progress:
        rows = measure(file.path, tasks, settings, progress)
    found = {
        "model": str(file.path),
        "ubatch": settings.ubatch,
        "threads": settings.threads,
        "shots": settings.shots,
        "text": [path.name for path in paths] if settings.retrievals else [],
        "rows": rows,
    }
    show(json.dumps(finite(found), indent=2, ensure_ascii=False) if args.json else table(found))
    return 0


def settings_of(args: argparse.Namespace) -> TaskSettings:
    """The settings that the options name; MiniCacheError where one is out of its range or does not apply to tasks."""
    for name in ("pos_offset", "chunks", "plot", "score"):
        if getattr(args, name):
            raise MiniCacheError(
                f"--{name.replace('_', '-')} is for the comparison on a text; leave it out, or --task and --retrieve"
            )
    if not args.retrieve:
        for name in ("ctx", "depth", "text"):
            if getattr(args, name):
                raise MiniCacheError(
                    f"--{name} is for --retrieve; the context of a task's file is as long as its items need"
                )
    if args.shots and not args.task:
        raise MiniCacheError(
            "--shots takes its examples from the file of a --task; give one, or leave it out"
        )
    for name, values, least in (
        ("--ctx", args.ctx, 64),
        ("--ubatch", [args.ubatch], 1),
        ("--task-limit", [args.task_limit], 1),
        ("--shots", [args.shots], 0),
    ):
        check_numbers(name, values, least)
    check_machine_options(args)
    return TaskSettings(
        files=list(dict.fromkeys(args.task or [])),
        retrievals=list(dict.fromkeys(args.retrieve or [])),
        contexts=list(dict.fromkeys(args.ctx or [DEFAULT_CTX])),
        depths=depths_of(args.depth or [DEFAULT_DEPTHS]),
        specs=cache_specs(args.config or DEFAULT_SPECS),
        limit=args.task_limit,
        shots=args.shots or 0,
        ubatch=args.ubatch or PROMPT_UBATCH,
        threads=args.threads or default_threads(),
        gpu_layers=args.gpu_layers,
    )


def depths_of(texts: list[str]) -> list[float]:
    """The depths that the option names, each once; MiniCacheError where one is not a number from 0 to 1."""
    depths = []
    for one in ",".join(texts).split(","):
        try:
            depth = float(one)
        except ValueError:
            depth = -1
        if not 0 <= depth <= 1:
            raise MiniCacheError(f"--depth {one}: it must be a number from 0 to 1")
        depths.append(depth)
    return list(dict.fromkeys(depths))

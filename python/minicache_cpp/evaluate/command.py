"""`minicache evaluate`: what KV caches cost in quality and take in bytes, side by side in one run."""

from __future__ import annotations

import argparse

from ..cache.checked import add_config_option, checked_specs
from ..errors import MiniCacheError
from ..host.output import show, tell
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
from ..text import bundled
from ..text.files import read_texts
from .settings import DEFAULT_CTX, Settings, cache_specs
from .tasks.command import add_task_options
from .tasks.command import run as run_tasks
from .tasks.settings import PROMPT_UBATCH

EXAMPLE = "minicache evaluate model.gguf --ctx 4096 --pos-offset 0 --pos-offset 20000 --config q4_0 --json"
DECODE_UBATCH = 1
DEFAULT_SPECS = ("f16", "q8_0", "q4_0", "slerp:type=f16", "slerp:type=q4_0")
DISK = (
    "the f16 cache's distributions over the scored tokens of a chunk are kept in the temporary folder (TMPDIR): 2 "
    "bytes x context x vocabulary, or 4 with --score all; 600 MB or 1.2 GB at 2048 tokens and a vocabulary of 150,000"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_argument(parser)
    add_text_options(parser)
    add_config_option(parser, "measure")
    parser.add_argument(
        "--ubatch",
        type=int,
        metavar="N",
        help="tokens read at a time, which MiniCache sees exactly while earlier ones are merged (default: 1, as in "
        f"decode, and for tasks {PROMPT_UBATCH}, as prompts are read)",
    )
    add_task_options(parser)
    add_machine_options(parser)
    add_json_option(parser)
    parser.add_argument(
        "--plot", type=path_option, metavar="FILE", help="draw KL over bytes, as .png, .svg or .pdf"
    )


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """What is read."""
    parser.add_argument(
        "--text",
        action="append",
        type=path_option,
        metavar="FILE",
        help="UTF-8 text; may be repeated (default: the text that comes with the package)",
    )
    parser.add_argument(
        "--ctx",
        type=int,
        action="append",
        metavar="N",
        help=f"tokens of a chunk, and of the cache; may be repeated (default: {DEFAULT_CTX}); {DISK}",
    )
    parser.add_argument(
        "--pos-offset",
        type=int,
        action="append",
        metavar="P",
        help="position of the first token; may be repeated (default: 0)",
    )
    parser.add_argument(
        "--chunks", type=int, metavar="N", help="chunks of text (default: 4, fewer if the text is short)"
    )
    parser.add_argument(
        "--score",
        choices=("all", "second-half"),
        help="tokens of a chunk that are scored (default: second-half, where most of the context is in the cache)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and print the table or the object."""
    if args.task or args.retrieve:
        return run_tasks(args)
    settings = settings_of(args)
    if args.plot:
        from .plot import check_plot

        check_plot(args.plot)
    file = read_gguf(requested_model(args.model))
    checked_specs(file, settings.specs)
    paths = args.text or bundled.evaluation_files()
    text = read_texts(paths)

    from . import evaluation
    from .material import prepare
    from .table import table, to_json

    notes = evaluation.check_positions(file, settings)
    material = prepare(file.path, text, settings)
    evaluation.check_room(file, material, settings)
    for note in notes:
        tell(f"minicache: warning: {note}")
    with StepProgress() as progress:
        runs = evaluation.measure(file, material, settings, progress)
    for found in runs:
        found["text"] = [path.name for path in paths]
    show(to_json(runs) if args.json else table(runs))
    if args.plot:
        from .plot import plot

        plot(args.plot, runs)
        tell(f"minicache: the plot is in {args.plot}")
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the options name; MiniCacheError where one is out of its range."""
    for name, values, least in (
        ("--ctx", args.ctx, 8),
        ("--pos-offset", args.pos_offset, 0),
        ("--ubatch", [args.ubatch], 1),
        ("--chunks", [args.chunks], 1),
    ):
        check_numbers(name, values, least)
    check_machine_options(args)
    for name in ("depth", "task_limit", "shots"):
        if getattr(args, name) is not None:
            raise MiniCacheError(
                f"--{name.replace('_', '-')} is for --task and --retrieve; give one of them too"
            )
    return Settings(
        contexts=list(dict.fromkeys(args.ctx or [DEFAULT_CTX])),
        offsets=list(dict.fromkeys(args.pos_offset or [0])),
        specs=cache_specs(args.config or DEFAULT_SPECS),
        ubatch=args.ubatch or DECODE_UBATCH,
        chunks=args.chunks,
        score_all=args.score == "all",
        threads=args.threads or default_threads(),
        gpu_layers=args.gpu_layers,
    )

"""`minicache calibrate`: fits shared codes to a model's layers, measures what they lose, and writes the plan."""

from __future__ import annotations

import argparse
import json
import re

from ..cache.plan_store import DEFAULT_RATIO, find_plan, plan_beside, plan_path
from ..errors import MiniCacheError
from ..host.output import show, tell
from ..host.paths import path_option
from ..host.progress import Progress
from ..modelfile.gguf_file import GGUFFile, read_gguf
from ..models.requested import requested_model
from ..options import add_json_option, add_machine_options, add_model_argument
from . import aligned_command
from .grouping import DEFAULT_GROUP, GROUPINGS
from .material import MOST_CHECKED
from .options import (
    DEFAULT_BLOCK,
    DEFAULT_TOKENS,
    DEFAULT_WINDOW,
    Options,
    check_options,
    check_output,
)
from .table import table

EXAMPLE = "minicache calibrate model.gguf --ratio 8 -o model.plan.gguf"
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--text",
        action="append",
        type=path_option,
        metavar="FILE",
        help="UTF-8 text to calibrate with beside the package's own, of any length; may be repeated",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help=f"tokens of the text to use (default {DEFAULT_TOKENS[False]}; with --thorough {DEFAULT_TOKENS[True]})",
    )
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="fit to five times as much text and probe the layers on more of it, which takes some nine minutes in "
        "place of one: for plans that are handed on",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path_option,
        metavar="PLAN",
        help="the plan file (default: in the user's cache directory, where minicache='auto' finds it)",
    )
    add_target_options(parser)
    add_fit_options(parser)
    add_machine_options(parser)
    add_json_option(parser)
    aligned_command.add_options(parser)


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for what the plan must reach."""
    group = parser.add_argument_group("target", "one of --ratio, --max-kl and --budget")
    target = group.add_mutually_exclusive_group()
    target.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help=f"f16 bytes per cached token over the plan's, at least (default {DEFAULT_RATIO:g})",
    )
    target.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="make the smallest cache whose KL divergence from the f16 cache is at most X nats per token",
    )
    target.add_argument(
        "--budget", metavar="SIZE", help="bytes of the whole cache at --ctx tokens, such as 512MiB"
    )
    group.add_argument(
        "--ctx",
        type=int,
        metavar="N",
        help="the context that --budget or --max-kl is for, in tokens; the loss is checked at this context, or at "
        f"{MOST_CHECKED} tokens if it is longer",
    )


def add_fit_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options for how the codes are made."""
    group = parser.add_argument_group("codes")
    group.add_argument(
        "--rope-block",
        type=int,
        default=DEFAULT_BLOCK,
        metavar="B",
        help="code K relative to the last multiple of B positions, with B from 1 to 1024; with 0, code K as it is "
        "after RoPE (default %(default)s)",
    )
    group.add_argument(
        "--window",
        type=int,
        metavar="W",
        help="keep W tokens of each stream uncoded: the first four (of smaller windows, W/16), and the latest "
        f"(default {DEFAULT_WINDOW}; with --mode aligned 0)",
    )
    sizes = group.add_mutually_exclusive_group()
    sizes.add_argument(
        "--group",
        choices=[name for name in GROUPINGS if name != "fast"],
        default=DEFAULT_GROUP,
        help="how many neighbouring layers share a code: the more, the less is lost, and the more attention reads for "
        "each layer; auto weighs both for every four layers (default %(default)s)",
    )
    sizes.add_argument(
        "--fast",
        dest="group",
        action="store_const",
        const="fast",
        help="for speed: each layer by itself, in codes of fewer coefficients, as the time of attention counts too",
    )
    sizes.add_argument(
        "--small",
        dest="group",
        action="store_const",
        const="4",
        help="for less loss at the same size, or less size at the same loss: the same as --group 4",
    )
    group.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="with --thorough: measure the sensitivities again up to N times, with a whole cache for each layer, "
        "at the errors of the plan that was chosen, which takes an hour (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    if args.mode == "aligned":
        return aligned_command.run(args)
    aligned_command.refuse_settings(args)
    options = options_of(args)
    # before a model is fetched
    check_options(options)
    check_output(args.output)

    from .calibration import calibrate

    file = read_gguf(requested_model(args.model))
    found = calibrate(file, options, args.output, Progress("calibrate"))
    show(json.dumps(found, indent=2) if args.json else table(found))
    if args.output is None:
        note_earlier_plan(file)
    return 0


def note_earlier_plan(file: GGUFFile) -> None:
    """Notes that "auto" will use another plan, because it finds that one before the plan just written."""

    def note(text: str) -> None:
        tell(f"minicache: note: {text}")

    used = find_plan(file, note)
    if used is not None and used.path != plan_path(file):
        note(f"minicache='auto' finds {used} first; `-o {plan_beside(file)}` puts a plan before it")


def options_of(args: argparse.Namespace) -> Options:
    """Returns the options that the arguments give, with DEFAULT_RATIO as the target if they name none."""
    budget = parse_size(args.budget) if args.budget is not None else None
    if budget is not None and args.ctx is None:
        raise MiniCacheError("--budget needs --ctx, the context in tokens that the cache is for")
    if args.ctx is not None and budget is None and args.max_kl is None:
        raise MiniCacheError("--ctx goes with --budget or --max-kl; a ratio is the same at every context")
    given = args.ratio is not None or args.max_kl is not None or budget is not None
    return Options(
        texts=tuple(args.text or ()),
        ratio=args.ratio if given else DEFAULT_RATIO,
        max_kl=args.max_kl,
        budget=budget,
        n_ctx=args.ctx or 0,
        rope_block=args.rope_block,
        window=args.window if args.window is not None else DEFAULT_WINDOW,
        group=args.group,
        thorough=args.thorough,
        tokens=args.tokens,
        refine=args.refine,
        threads=args.threads or 0,
        gpu_layers=args.gpu_layers,
    )


def parse_size(text: str) -> int:
    """The bytes of a size such as 512MiB or 1.5G; K, M, G and T are powers of 1024."""
    match = SIZE.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise MiniCacheError(f"--budget {text} is not a size; write one such as 512MiB or 1.5GiB")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))

"""`minicache calibrate`: fit shared codes to a model's layers, measure what they cost, and write the plan."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from ..cache.report import types_name
from ..cache.settings import MiniCache
from ..errors import MiniCacheError
from ..host.demo_model import demo_model
from ..host.progress import Progress
from ..host.units import mib
from ..modelfile.gguf_file import read_gguf
from ..options import add_json_option, add_machine_options, add_model_argument
from .calibration import (
    DEFAULT_BLOCK,
    DEFAULT_GROUP,
    DEFAULT_RATIO,
    DEFAULT_TOKENS,
    DEFAULT_WINDOW,
    GROUP_SIZES,
    Options,
    calibrate,
    check_options,
    check_output,
    threads_for,
)

EXAMPLE = "minicache calibrate model.gguf --ratio 8 -o model.plan.gguf"
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
ALIGNED_SETTINGS = {
    "start": "the first layer that may be merged, a fraction or a layer number (default 0.5)",
    "t": "SLERP parameter (default 0.6)",
    "retain": "fraction of the tokens that stay unmerged (default 0.05)",
    "type": "cache type of directions and plain layers (default f16)",
}


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--text",
        action="append",
        type=Path,
        metavar="FILE",
        help="UTF-8 text to calibrate with, of any length; may be repeated (default: the package's own)",
    )
    target = parser.add_argument_group("what is wanted").add_mutually_exclusive_group()
    target.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help=f"f16 bytes per cached token over the plan's (default: {DEFAULT_RATIO:g})",
    )
    target.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="the smallest cache whose KL divergence from the f16 cache is at most X nats per token",
    )
    target.add_argument(
        "--budget", metavar="SIZE", help="bytes of the whole cache at --ctx tokens, such as 512MiB"
    )
    parser.add_argument("--ctx", type=int, metavar="N", help="the context that --budget is for")
    parser.add_argument(
        "--rope-block",
        type=int,
        default=DEFAULT_BLOCK,
        metavar="B",
        help="K is coded relative to multiples of this position, 1 to 1024, 0: as it is (default %(default)s)",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="W",
        help="the latest tokens of each stream, which stay as they are "
        f"(default {DEFAULT_WINDOW}; with --mode aligned 0)",
    )
    parser.add_argument(
        "--group",
        choices=GROUP_SIZES,
        default=DEFAULT_GROUP,
        help="how many neighbouring layers share a code: four lose less, and attention reads twice as much of each; "
        "auto takes four where that measures better by a tenth (default %(default)s)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=DEFAULT_TOKENS,
        metavar="N",
        help="tokens of text to work with (default %(default)s)",
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="rounds of measuring the sensitivities again, at what was chosen (default %(default)s)",
    )
    add_machine_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PLAN",
        help="the plan file (default: in the user's cache directory, where minicache='auto' finds it)",
    )
    add_json_option(parser)
    study = parser.add_argument_group(
        "for study", "SLERP in fitted bases in place of codes, with its settings as in a SPEC; needs -o"
    )
    study.add_argument("--mode", choices=("code", "aligned"), default="code", help="default: code")
    for name, what in ALIGNED_SETTINGS.items():
        study.add_argument(f"--{name}", metavar=name[0].upper(), help=f"with --mode aligned: {what}")


def run(args: argparse.Namespace) -> int:
    if args.mode == "aligned":
        return run_aligned(args)
    for name in ALIGNED_SETTINGS:
        if getattr(args, name) is not None:
            raise MiniCacheError(f"--{name} goes with --mode aligned")
    options = options_of(args)
    found = calibrate(args.model or demo_model(), options, args.output, Progress("calibrate"))
    print(json.dumps(found, indent=2) if args.json else table(found))
    return 0


def run_aligned(args: argparse.Namespace) -> int:
    """Fit bases for SLERP, and write the plan."""
    for name in ("ratio", "max_kl", "budget", "ctx"):
        if getattr(args, name) is not None:
            raise MiniCacheError(f"--{name.replace('_', '-')} is for codes, not for --mode aligned")
    if args.output is None:
        raise MiniCacheError(
            "--mode aligned needs -o PLAN: such a plan is for study, and not found by itself"
        )
    names = (*ALIGNED_SETTINGS, "window")
    given = [f"{name}={getattr(args, name)}" for name in names if getattr(args, name) is not None]
    settings = MiniCache.parse("slerp:" + ",".join(given))
    options = Options(
        texts=tuple(args.text or ()),
        window=0,  # nothing is measured here
        tokens=args.tokens,
        threads=args.threads or 0,
        gpu_layers=args.gpu_layers,
    )
    check_options(options)
    check_output(args.output)
    file = read_gguf(args.model or demo_model())

    from . import alignment

    progress = Progress("calibrate")
    try:
        found = alignment.align(
            file,
            settings,
            args.output,
            paths=options.texts,
            n_tokens=options.tokens,
            threads=options.threads or threads_for(file),
            gpu_layers=options.gpu_layers,
            progress=progress,
        )
    finally:
        progress.close()
    print(json.dumps(found, indent=2) if args.json else alignment.table(found))
    return 0


def options_of(args: argparse.Namespace) -> Options:
    budget = parse_size(args.budget) if args.budget is not None else None
    if (budget is None) != (args.ctx is None):
        raise MiniCacheError(
            "--budget and --ctx go together: the size of the cache, and its context in tokens"
        )
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
        tokens=args.tokens,
        refine=args.refine,
        threads=args.threads or 0,
        gpu_layers=args.gpu_layers,
    )


def parse_size(text: str) -> int:
    """Bytes of a size such as 512MiB; K, M, G and T are powers of 1024."""
    match = SIZE.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise MiniCacheError(f"--budget {text}: it is no size; write one such as 512MiB or 1.5GiB")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def table(found: dict[str, Any]) -> str:
    """What was chosen and why, and what came of it, for people."""
    lines = [f"{Path(found['model']).name}: {found['target']}; {found['why']}"]
    if found["choices"]:
        lines += [
            "",
            "layers     bits/value K     V   error K      V   share of the loss",
        ]
        for row in found["choices"]:
            layers = "+".join(map(str, row["layers"]))
            if row["types"]:
                types = ", ".join(types_name(*names) for names in row["types"])
                lines.append(f"{layers:<8}  {'plain ' + types:<35}   {row['share']:>17.1%}")
                continue
            lines.append(
                f"{layers:<8}  {row['bits_k']:>13.2f} {row['bits_v']:>5.2f}   {row['error_k']:>7.2%} "
                f"{row['error_v']:>6.2%}   {row['share']:>17.1%}"
            )
    if found["rope_block"]:
        lines.append(f"K is coded relative to blocks of {found['rope_block']} positions")
    if found["retain"]:
        lines.append(f"one token in {round(1 / found['retain'])} is retained as {found['pool_type']}")
    if found["window"]:
        lines.append(
            f"the latest {found['window']} tokens are kept as {found['pool_type']}, whatever the context"
        )
    lines += ["", f"cache at {found['context']} tokens      taken   ratio  total      KL    top-1"]
    for row in found["rows"]:
        lines.append(
            f"{row['name']:<16} {mib(row['bytes']):>16}  {row['ratio']:>6.2f} {row['total_ratio']:>6.2f}  "
            f"{row['kl']:>6.4f}  {row['top1']:>6.1%}"
        )
    tokens = found["tokens"]
    lines.append(
        f"measured on {tokens['check']} tokens of text that nothing was fitted to or chosen by, past tokens "
        "from the cache"
    )
    lines.append(f"plan: {found['plan']}")
    return "\n".join(lines)

"""Options that several commands share, and the check of their numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .errors import MiniCacheError

MOST = 2**31 - 1  # of tokens and other counts, which llama.cpp has as int32_t
MOST_THREADS = 512  # ggml.h's GGML_MAX_N_THREADS
ALL_LAYERS = -1  # on the GPU


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """The model: a path or a name."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a GGUF file, or a name of `minicache models`, which is fetched if needed (default: smollm2-135m)",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Where a model runs."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="T",
        help="CPU threads (default: the cores available, or half of them if there are more than four)",
    )
    parser.add_argument(
        "--gpu-layers", type=int, default=0, metavar="N", help="layers on the GPU, -1 for all (default 0)"
    )


def add_json_option(parser: argparse.ArgumentParser, what: str = "print one JSON object") -> None:
    """Machine-readable output."""
    parser.add_argument("--json", action="store_true", help=what)


def check_machine_options(args: argparse.Namespace) -> None:
    """Raises MiniCacheError where --threads or --gpu-layers has a number that llama.cpp does not take."""
    check_threads(args.threads)
    check_numbers("--gpu-layers", [args.gpu_layers], ALL_LAYERS)


def check_threads(threads: int | None) -> None:
    """Raises MiniCacheError if --threads has a number that ggml does not take; None is for the default."""
    check_numbers("--threads", [threads], 1, MOST_THREADS)


def check_numbers(name: str, values: Sequence[int | None] | None, least: int, most: int = MOST) -> None:
    """Raises MiniCacheError if a value of the option `name` is outside its range; None is skipped."""
    for value in values or ():
        if value is not None and value < least:
            raise MiniCacheError(f"{name} {value}: it must be {least} or more")
        if value is not None and value > most:
            raise MiniCacheError(f"{name} {value}: it must be {most} or less")

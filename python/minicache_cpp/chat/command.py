"""`minicache chat`: talk with a model, and see what its KV cache takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..cache.checked import checked_specs
from ..cache.room import refuse_too_large
from ..cache.settings import F16, CacheSpec
from ..errors import MiniCacheError
from ..host.notes import warnings_as_notes
from ..host.progress import Progress
from ..host.threads import default_threads
from ..modelfile.gguf_file import GGUFFile, read_gguf
from ..models.requested import requested_model
from ..options import (
    add_json_option,
    add_machine_options,
    add_model_argument,
    check_machine_options,
    check_numbers,
)
from ..runtime import auto
from ..runtime.asked import DEFAULT_CTX, add_cache_options, context_size, given_spec
from ..runtime.request import LARGEST_RATIO

if TYPE_CHECKING:
    from ..runtime.llama import Llama

EXAMPLE = "minicache chat model.gguf --ctx 8192 --config model.plan.gguf"


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_cache_options(parser)
    parser.add_argument(
        "--calibrate",
        choices=auto.CHOICES,
        help="without --config and a plan of the model: make one first, or take plain q8_0, and make one while you "
        f"type or read, or none (default: as {auto.VARIABLE} says, background without it)",
    )
    parser.add_argument(
        "--ctx",
        type=int,
        metavar="N",
        help=f"context in tokens (default: the model's, at most {DEFAULT_CTX})",
    )
    add_machine_options(parser)
    parser.add_argument("--system", metavar="TEXT", help="system message")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this one message and leave")
    parser.add_argument(
        "--max-tokens", type=int, default=0, metavar="N", help="length of an answer (default: the context's)"
    )
    add_json_option(parser, "one answer, to --prompt or all of stdin, as one JSON object")
    parser.add_argument("--verbose", action="store_true", help="show llama.cpp's log")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temp",
        type=float,
        default=0.7,
        metavar="T",
        help="temperature; 0 always takes the likeliest token (default %(default)s)",
    )
    sampling.add_argument("--top-k", type=int, default=40, metavar="K", help="(%(default)s)")
    sampling.add_argument("--top-p", type=float, default=0.95, metavar="P", help="(%(default)s)")
    sampling.add_argument("--min-p", type=float, default=0.05, metavar="P", help="(%(default)s)")
    sampling.add_argument("--repeat-penalty", type=float, default=1.0, metavar="R", help="(%(default)s)")
    sampling.add_argument("--seed", type=int, metavar="N", help="(default: another one each time)")


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    spec = given_spec(args)
    file = read_gguf(requested_model(args.model))
    if spec is not None:
        checked_specs(file, [spec])
    n_ctx = context_size(args.ctx, file)
    # what no plan makes small enough is refused before minutes of calibration, the weights counted too
    share = 1.0 if spec is not None else 1 / LARGEST_RATIO
    refuse_too_large(file, n_ctx, [spec or F16], args.gpu_layers, share=share)
    # what is piped in in another encoding must not end the chat
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    with warnings_as_notes() as notes, open_model(args, file, spec, n_ctx) as llm:
        from .console import Chat

        chat = Chat(llm, args)
        if args.json:
            return chat.answer_as_json(args.prompt if args.prompt is not None else sys.stdin.read(), notes)
        if args.prompt is not None:
            return chat.answer_once(args.prompt)
        return chat.talk()


def check_arguments(args: argparse.Namespace) -> None:
    for name, least in (("ctx", 1), ("max_tokens", 0), ("top_k", 0)):
        check_numbers(f"--{name.replace('_', '-')}", [getattr(args, name)], least)
    check_machine_options(args)
    for name in ("top_p", "min_p"):
        if not 0 <= getattr(args, name) <= 1:
            raise MiniCacheError(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be from 0 to 1")
    if not 0 <= args.temp < float("inf"):
        raise MiniCacheError(f"--temp {args.temp}: it must be 0 or more")
    if not 0 < args.repeat_penalty < float("inf"):
        raise MiniCacheError(f"--repeat-penalty {args.repeat_penalty}: it must be more than 0; 1 is none")
    for name in ("prompt", "system"):
        try:
            (getattr(args, name) or "").encode()
        except UnicodeEncodeError:  # bytes of another encoding, as Python hands them on
            raise MiniCacheError(f"--{name} is not UTF-8 text; convert it, or pipe it in") from None
    if args.json and args.prompt is None and sys.stdin.isatty():
        raise MiniCacheError("--json answers one message; give it with --prompt, or pipe it in")


def calibrate_choice(args: argparse.Namespace) -> str:
    """When a missing plan is made. One answer leaves no idle time to make it in."""
    choice = auto.calibrate_choice(args.calibrate, "background")
    one_answer = args.prompt is not None or args.json
    return "never" if choice == "background" and one_answer else choice


@contextmanager
def open_model(
    args: argparse.Namespace, file: GGUFFile, spec: CacheSpec | None, n_ctx: int
) -> Iterator[Llama]:
    """The loaded model; llama.cpp's log is silent, and what it says of a failure becomes the message."""
    import jinja2

    from ..native.log import NativeLog
    from ..runtime.llama import Llama

    log = NativeLog(args.verbose).install()
    choice = calibrate_choice(args)
    progress = Progress("calibrate") if choice == "once" else None
    threads = args.threads or default_threads()
    try:
        llm = Llama(
            file,
            n_ctx=n_ctx,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=args.gpu_layers,
            minicache=spec or "auto",
            calibrate=choice,
            on_progress=progress,
            verbose=args.verbose,
        )
    except MiniCacheError:
        raise
    except jinja2.TemplateError as error:
        raise MiniCacheError(f"the model's chat template cannot be read: {error}") from error
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = log.reason()
        raise MiniCacheError(f"{file.path} cannot be used: {reason or error}") from error
    finally:
        if progress:
            progress.close()
    with llm:
        yield llm

"""`minicache chat`: talk with a model, and see what its KV cache takes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import auto, host_memory, kv_size
from .cli import add_json_option, add_machine_options, add_model_argument, check_numbers
from .config import SPEC_HELP, CacheSpec
from .demo_model import demo_model
from .errors import MiniCacheError, MiniCacheWarning
from .gguf_file import GGUFFile, read_gguf
from .report import mib

if TYPE_CHECKING:
    from .conversation import Answer, Conversation
    from .llama import Llama

EXAMPLE = "minicache chat model.gguf --ctx 8192 --config slerp:start=0.5,type=q4_0"
DEFAULT_CTX = 4096
HELP = """\
/memory       what the KV cache takes
/save FILE    write the conversation, with the cache, to a file
/load FILE    take it up again
/reset        start anew
/help         this
/quit         leave (Ctrl-D does, too; Ctrl-C stops an answer)"""


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    cache = parser.add_argument_group("KV cache").add_mutually_exclusive_group()
    cache.add_argument(
        "--config", metavar="SPEC", help=f"{SPEC_HELP}; default: this model's plan, made now if there is none"
    )
    cache.add_argument("--no-minicache", action="store_true", help="a plain f16 cache, for comparison")
    parser.add_argument(
        "--calibrate",
        choices=auto.CHOICES,
        help="without --config and a plan of the model: make one, or take plain q8_0 "
        f"(default: as {auto.VARIABLE} says, once without it)",
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
        help="temperature, 0: the likeliest token (%(default)s)",
    )
    sampling.add_argument("--top-k", type=int, default=40, metavar="K", help="(%(default)s)")
    sampling.add_argument("--top-p", type=float, default=0.95, metavar="P", help="(%(default)s)")
    sampling.add_argument("--min-p", type=float, default=0.05, metavar="P", help="(%(default)s)")
    sampling.add_argument("--repeat-penalty", type=float, default=1.0, metavar="R", help="(%(default)s)")
    sampling.add_argument("--seed", type=int, metavar="N", help="(default: another one each time)")


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    spec = given_spec(args)
    path = Path(args.model) if args.model else demo_model()
    file = read_gguf(path)
    n_ctx = context_size(args.ctx, file)
    if spec is None:
        check_memory(file, auto.WITHOUT_PLAN, n_ctx, args.gpu_layers)  # before minutes of work
        spec = auto.resolve(path, args.calibrate, note, args.gpu_layers, args.threads)
    check_memory(file, spec, n_ctx, args.gpu_layers)
    # a console of another encoding must not end an answer
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    with warnings_as_notes() as notes, open_model(args, path, spec, n_ctx) as llm:
        chat = Chat(llm, spec, args)
        if args.json:
            return chat.answer_as_json(args.prompt if args.prompt is not None else sys.stdin.read(), notes)
        if args.prompt is not None:
            return chat.answer_once(args.prompt)
        return chat.talk()


def check_arguments(args: argparse.Namespace) -> None:
    for name, least in (("ctx", 1), ("threads", 1), ("max_tokens", 0), ("gpu_layers", -1), ("top_k", 0)):
        check_numbers(f"--{name.replace('_', '-')}", [getattr(args, name)], least)
    for name in ("top_p", "min_p"):
        if not 0 <= getattr(args, name) <= 1:
            raise MiniCacheError(f"--{name.replace('_', '-')} {getattr(args, name)}: it must be from 0 to 1")
    if not 0 <= args.temp < float("inf"):
        raise MiniCacheError(f"--temp {args.temp}: it must be 0 or more")
    if not 0 < args.repeat_penalty < float("inf"):
        raise MiniCacheError(f"--repeat-penalty {args.repeat_penalty}: it must be more than 0; 1 is none")
    if args.json and args.prompt is None and sys.stdin.isatty():
        raise MiniCacheError("--json answers one message; give it with --prompt, or pipe it in")


def given_spec(args: argparse.Namespace) -> CacheSpec | None:
    """The cache that is asked for, None where the model's plan decides."""
    if args.no_minicache:
        return CacheSpec("f16", "f16")
    return CacheSpec.parse(args.config) if args.config not in (None, "auto") else None


def context_size(wanted: int | None, file: GGUFFile) -> int:
    trained = kv_size.model_shape(file).n_ctx_train
    n_ctx = wanted or min(trained or DEFAULT_CTX, DEFAULT_CTX)
    if trained and n_ctx > trained:
        note(f"the model was trained for {trained} tokens; beyond them answers may turn to nonsense")
    return kv_size.n_cells(n_ctx)


def check_memory(file: GGUFFile, spec: CacheSpec, n_ctx: int, gpu_layers: int) -> None:
    shape = kv_size.model_shape(file)
    kv_bytes = 0 if shape.unknown else kv_size.kv_bytes(shape, spec, n_ctx)
    if gpu_layers == 0:
        host_memory.refuse_too_large(n_ctx, kv_bytes, file.weight_bytes)


@contextmanager
def open_model(args: argparse.Namespace, path: Path, spec: CacheSpec, n_ctx: int) -> Iterator[Llama]:
    """The loaded model; llama.cpp's log is silent, and what it says of a failure becomes the message."""
    import jinja2

    from .llama import Llama
    from .native_log import NativeLog

    log = NativeLog(args.verbose).install()
    types: dict[str, Any] = (
        {} if spec.minicache else {"type_k": spec.type_k, "type_v": spec.type_v, "flash_attn": True}
    )
    threads = args.threads or default_threads()
    try:
        llm = Llama(
            str(path),
            n_ctx=n_ctx,
            n_threads=threads,
            n_threads_batch=threads,
            n_gpu_layers=args.gpu_layers,
            minicache=spec.minicache,
            verbose=args.verbose,
            **types,
        )
    except MiniCacheError:
        raise
    except jinja2.TemplateError as error:
        raise MiniCacheError(f"the model's chat template can't be read: {error}") from error
    except (ValueError, RuntimeError, AssertionError) as error:
        reason = log.reason()
        raise MiniCacheError(f"{path} can't be used: {reason or error}") from error
    with llm:
        yield llm


def default_threads() -> int:
    """The cores this process may use; of many, half, as the others mostly are hyper-threads of the same."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return available if available <= 4 else available // 2


class Chat:
    """The console around a conversation: answers on stdout, everything else on stderr."""

    def __init__(self, llm: Llama, spec: CacheSpec, args: argparse.Namespace) -> None:
        from .chat_template import ChatTemplate
        from .conversation import Conversation, Sampling

        template = ChatTemplate.of(llm)
        if template.is_plain:
            note(
                "the model has no chat template, so it was hardly trained to chat; "
                "the speakers are called User and Assistant"
            )
        report = llm.kv_report()
        if spec.minicache and report.note:
            note(f"no layer of this model is merged: {report.note}")
        sampling = Sampling(args.temp, args.top_k, args.top_p, args.min_p, args.repeat_penalty, args.seed)
        self.llm = llm
        self.spec = spec
        self.max_tokens = args.max_tokens
        self.conversation: Conversation = Conversation(llm, template, args.system, sampling)
        self.interactive = sys.stdin.isatty()

    def talk(self) -> int:
        if self.interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  (line editing for input())
            note(f"{Path(self.llm.model_path).name}, cache {self.spec.name}; /help tells what else there is")
        while True:
            try:
                line = input("> " if self.interactive else "")
            except EOFError:
                break
            except KeyboardInterrupt:
                print(file=sys.stderr)
                note("/quit or Ctrl-D leaves")
                continue
            if line.startswith("/"):
                if self.command(line.strip()):
                    break
            elif line.strip():
                try:
                    self.answer(line)
                except MiniCacheError as error:
                    note(str(error))
        return 0

    def answer_once(self, question: str) -> int:
        answer = self.answer(question)
        return 130 if answer.finish == "interrupted" else 0

    def answer_as_json(self, question: str, notes: list[str]) -> int:
        with interrupts() as stopped:
            answer = self.conversation.ask(question, self.max_tokens, stopped=stopped)
        report = self.llm.kv_report()
        found = {
            "model": self.llm.model_path,
            "cache": self.spec.name,
            "answer": answer.text,
            "finish_reason": answer.finish,
            "tokens": answer.n_tokens,
            "tokens_per_second": answer.tokens_per_second,
            "prompt_tokens": answer.n_prompt,
            "prompt_seconds": answer.prompt_seconds,
            "kv_bytes": report.bytes,
            "kv_bytes_f16": report.bytes_f16,
            "ratio": report.ratio,
            "total_ratio": report.total_ratio,
            "context": self.conversation.n_ctx,
            "context_used": self.llm.n_tokens,
            "warnings": notes,
        }
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return 130 if answer.finish == "interrupted" else 0

    def answer(self, question: str) -> Answer:
        with interrupts() as stopped:
            answer = self.conversation.ask(question, self.max_tokens, print_text, stopped)
        print(flush=True)
        if answer.dropped:
            note(
                f"the context was full: the oldest {answer.dropped} tokens after the system message "
                "were dropped"
            )
        if answer.finish == "full":
            note("the context is full, and can't be shifted; the next question drops the oldest ones")
        if answer.finish == "interrupted":
            note("stopped")
        note(self.status(answer))
        return answer

    def status(self, answer: Answer) -> str:
        report = self.llm.kv_report()
        return (
            f"KV {mib(report.bytes)}, as f16 {mib(report.bytes_f16)}, ratio {report.ratio:.2f} · "
            f"context {self.llm.n_tokens} of {self.conversation.n_ctx} · "
            f"{answer.tokens_per_second:.1f} tokens/s"
        )

    def command(self, line: str) -> bool:
        """Obey a /command; whether it is the last."""
        from .chat_file import load_chat, save_chat

        name, _, argument = line.partition(" ")
        argument = argument.strip()
        try:
            if name == "/quit":
                return True
            if name == "/help":
                print(HELP)
            elif name == "/memory":
                print(self.llm.kv_report())
            elif name == "/reset":
                self.conversation.reset()
                note("the conversation is empty")
            elif name in ("/save", "/load") and not argument:
                note(f"{name} needs a file: {name} FILE")
            elif name == "/save":
                size = save_chat(Path(argument), self.conversation, self.spec.name)
                note(f"saved {mib(size)} to {argument}")
            elif name == "/load":
                load_chat(Path(argument), self.conversation, self.spec.name)
                note(f"{len(self.conversation.messages)} messages, {self.llm.n_tokens} tokens taken up")
            else:
                note(f"{name} is no command; /help lists them")
        except MiniCacheError as error:
            note(str(error))
        return False


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C is kept in mind for the code that asks between tokens; it does not break in anywhere."""
    pressed = False

    def remember(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def warnings_as_notes() -> Iterator[list[str]]:
    """MiniCache's warnings as notes on stderr, collected; those of other packages stay silent."""
    notes: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, MiniCacheWarning):
            notes.append(str(message))
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", MiniCacheWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield notes


def print_text(text: str) -> None:
    print(text, end="", flush=True)


def note(text: str) -> None:
    """A line beside the conversation; dim where the terminal can."""
    dim, normal = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    sys.stdout.flush()
    print(f"{dim}[{text}]{normal}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    from .cli import run_command

    return run_command("chat", argv)


if __name__ == "__main__":
    sys.exit(main())

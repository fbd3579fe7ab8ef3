"""The console around a conversation: what `minicache chat` prints, and the commands it obeys."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import MiniCacheError
from ..host.interrupts import interrupts
from ..host.notes import note
from ..host.output import show, tell
from ..host.units import mib
from ..runtime.llama import Llama
from .conversation import Answer, Conversation, template_of
from .file import load_chat, save_chat
from .sampling import Sampling

HELP = """\
/memory       show what the KV cache takes
/save FILE    save the conversation, with the cache, to a file
/load FILE    continue a saved conversation
/reset        start a new conversation
/help         show this list
/quit         leave (so does Ctrl-D; Ctrl-C stops an answer)"""


class Chat:
    """The console around a conversation: answers on stdout, everything else on stderr."""

    def __init__(self, llm: Llama, args: argparse.Namespace) -> None:
        template = template_of(llm)
        if template.is_plain:
            note(
                "the model has no chat template, and was probably not trained to chat; "
                "the speakers are called User and Assistant"
            )
        report = llm.kv_report()
        if llm.minicache and report.note:
            note(f"no layer of this model is merged: {report.note}")
        sampling = Sampling(args.temp, args.top_k, args.top_p, args.min_p, args.repeat_penalty, args.seed)
        self.llm = llm
        self.cache = llm.cache_spec.name
        self.max_tokens = args.max_tokens
        self.conversation: Conversation = Conversation(llm, template, args.system, sampling)
        self.interactive = sys.stdin.isatty()
        # whether something could not be done; a program that pipes messages in needs it as the exit code
        self.failed = False
        self.calibration_reported = False

    def talk(self) -> int:
        if self.interactive:
            with suppress(ImportError):
                import readline  # noqa: F401  (line editing for input())
            note(f"{Path(self.llm.model_path).name}, cache {self.cache}; /help lists the commands")
        while True:
            self.report_calibration()
            try:
                line = input("> " if self.interactive else "")
            except EOFError:
                break
            except KeyboardInterrupt:
                tell()
                note("/quit or Ctrl-D leaves")
                continue
            if line.startswith("/"):
                if self.command(line.strip()):
                    break
            elif line.strip():
                try:
                    self.answer(line)
                except MiniCacheError as error:
                    self.fail(str(error))
        # at a terminal the note is enough
        return 2 if self.failed and not self.interactive else 0

    def fail(self, reason: str) -> None:
        """Says what could not be done."""
        self.failed = True
        note(reason)

    def report_calibration(self) -> None:
        """Says once how a calibration in the background has ended."""
        calibration = self.llm.calibration
        if calibration is None or self.calibration_reported or not calibration.done:
            return
        self.calibration_reported = True
        if calibration.plan is not None:
            note("a plan of this model is ready; the next start keeps a longer context in the same memory")
        else:
            note(f"the model cannot be calibrated: {calibration.error}")

    def answer_once(self, question: str) -> int:
        answer = self.answer(question)
        return 130 if answer.finish == "interrupted" else 0

    def answer_as_json(self, question: str, notes: list[str]) -> int:
        with interrupts() as stopped:
            answer = self.conversation.ask(question, self.max_tokens, stopped=stopped)
        report = self.llm.kv_report()
        found = {
            "model": self.llm.model_path,
            "cache": self.cache,
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
        show(json.dumps(found, ensure_ascii=False, indent=2))
        return 130 if answer.finish == "interrupted" else 0

    def answer(self, question: str) -> Answer:
        with interrupts() as stopped:
            answer = self.conversation.ask(
                question, self.max_tokens, functools.partial(show, end=""), stopped
            )
        show()
        if answer.dropped:
            note(
                f"the context was full: the oldest {answer.dropped} tokens after the system message "
                "were dropped"
            )
        if answer.finish == "full":
            note("the context is full and cannot be shifted; the next question drops the oldest messages")
        if answer.finish == "interrupted":
            note("stopped")
        note(self.status(answer))
        return answer

    def status(self, answer: Answer) -> str:
        report = self.llm.kv_report()
        return (
            f"KV {mib(report.bytes)}, as f16 {mib(report.bytes_f16)}, "
            f"ratio {report.ratio:.2f}, total {report.total_ratio:.2f} · "
            f"context {self.llm.n_tokens} of {self.conversation.n_ctx} · "
            f"{answer.tokens_per_second:.1f} tokens/s"
        )

    def command(self, line: str) -> bool:
        """Obeys a /command, and returns whether it is the last."""
        name, _, argument = line.partition(" ")
        argument = unquoted(argument.strip())
        try:
            if name == "/quit":
                return True
            if name == "/help":
                show(HELP)
            elif name == "/memory":
                show(self.llm.kv_report())
            elif name == "/reset":
                self.conversation.reset()
                note("the conversation is empty")
            elif name in ("/save", "/load") and not argument:
                self.fail(f"{name} needs a file: {name} FILE")
            elif name == "/save":
                size = save_chat(argument, self.conversation)
                note(f"saved {mib(size)} to {argument}")
            elif name == "/load":
                load_chat(argument, self.conversation)
                note(f"loaded {len(self.conversation.messages)} messages, {self.llm.n_tokens} tokens")
            else:
                self.fail(f"{name} is not a command; /help lists them")
        except MiniCacheError as error:
            self.fail(str(error))
        return False


def unquoted(path: str) -> str:
    """A path without the quotes around it, which people type where it has blanks."""
    quoted = len(path) >= 2 and path[0] == path[-1] and path[0] in "'\""
    return path[1:-1] if quoted else path

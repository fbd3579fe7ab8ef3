"""The process in which chats are held, one after the other, as people hold them: they stop, save, load and leave."""

from __future__ import annotations

import contextlib
import ctypes
import random
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

from llama_cpp.llama_cache import LlamaRAMCache

from campaigns.children import say
from campaigns.process_use import give_back, use_of
from minicache_cpp import Conversation, Llama, MiniCacheError, Sampling, load_chat, save_chat
from minicache_cpp.native.binding import llama_h
from support import tiny_models
from support.contexts import quiet

QUESTIONS = [
    "hi",
    "Tell me more about it, please.",
    "What is a tide? " * 4,
    "List ten words.",
    "Why is that so?",
]
CACHES: list[Any] = ["auto", "slerp:start=0.5,retain=0.05", "plain:k=q8_0,v=q4_0", None]
N_CTX = 384
CHATS_OF_A_CONTEXT = 7


def main(model: Path | None, seed: int, n_steps: int, planted: str | None) -> None:
    """Holds so many chats, and writes a line of JSON before and after each."""
    llama_h.llama_log_set(quiet, ctypes.c_void_p(0))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = model or tiny_models.random_model(n_layer=4).write(Path(folder) / "model.gguf")
        chats = Chats(path, Path(folder))
        leaks = Leaks(planted)
        for number in range(seed, seed + n_steps):
            rng = random.Random(f"chat {number}")
            if (number - seed) % CHATS_OF_A_CONTEXT == 0:
                chats.renew(rng.choice(CACHES))
            say({"begins": number, "where": chats.cache})
            did, wrong = chats.hold(rng)
            leaks.leak()
            give_back()
            say({"uses": use_of(), "did": did, "wrong": wrong})
        chats.llm.close()
        say({"over": True})


class Chats:
    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.saved = model, folder / "saved"
        self.llm: Any = None
        self.cache = ""

    def renew(self, cache: Any) -> None:
        """Closes the context, and makes one with another cache."""
        if self.llm is not None:
            self.llm.close()
        self.saved.unlink(missing_ok=True)
        arguments: dict[str, Any] = {
            "n_ctx": N_CTX,
            "n_batch": 128,
            "n_threads": 1,
            "n_threads_batch": 1,
            "verbose": False,
        }
        self.llm = Llama(str(self.model), minicache=cache, calibrate="never", **arguments)
        self.llm.set_cache(LlamaRAMCache(8 << 20))
        self.cache = self.llm.cache_spec.name

    def hold(self, rng: random.Random) -> tuple[dict[str, int], str]:
        """Holds a chat; returns what was done how many times, and what was wrong, "" if nothing was."""
        did: dict[str, int] = {}
        talk = Conversation(self.llm, None, "be kind", Sampling(temp=0.7, seed=rng.randrange(1000)))
        for _ in range(rng.randint(2, 6)):
            name = rng.choices(
                ["ask", "stop", "abort", "save", "load", "leave", "state"], [5, 1, 1, 1, 1, 1, 1]
            )[0]
            try:
                n_shifted = getattr(self, f"_{name}")(rng, talk)
            except MiniCacheError as error:
                if name != "load":
                    return did, f"{name}: {error}"
                n_shifted = 0
            did[name] = did.get(name, 0) + 1
            did["shift"] = did.get("shift", 0) + bool(n_shifted)
        return did, ""

    def _ask(self, rng: random.Random, talk: Conversation) -> int:
        return talk.ask(rng.choice(QUESTIONS), rng.choice([4, 40, 120])).dropped

    def _stop(self, rng: random.Random, talk: Conversation) -> int:
        """Ctrl-C between tokens."""
        left = iter(range(rng.randint(0, 8)))
        return talk.ask(rng.choice(QUESTIONS), 60, stopped=lambda: next(left, None) is None).dropped

    def _abort(self, rng: random.Random, talk: Conversation) -> int:
        """Another thread ends the evaluation, as an app's button does."""
        thread = threading.Timer(rng.uniform(0, 0.1), self.llm.abort)
        thread.start()
        try:
            return talk.ask(rng.choice(QUESTIONS), 60).dropped
        finally:
            thread.join()

    def _save(self, rng: random.Random, talk: Conversation) -> int:
        save_chat(self.saved, talk)
        return 0

    def _load(self, rng: random.Random, talk: Conversation) -> int:
        """What an earlier chat has saved, if one has."""
        load_chat(self.saved, talk)
        return 0

    def _leave(self, rng: random.Random, talk: Conversation) -> int:
        """Whoever reads a stream is gone after a few parts of it."""
        stream: Any = self.llm.create_completion("Once upon a time", max_tokens=30, stream=True)
        with contextlib.closing(stream):
            for _ in range(rng.randint(0, 4)):
                next(stream, None)
        talk.reset()
        return 0

    def _state(self, rng: random.Random, talk: Conversation) -> int:
        state = self.llm.save_state()
        talk.ask("and?", 4)
        self.llm.load_state(state)
        talk.reset()
        return 0


class Leaks:
    """What a campaign must notice."""

    def __init__(self, kind: str | None) -> None:
        self.kind = kind
        self.kept: list[Any] = []

    def leak(self) -> None:
        if self.kind == "memory":
            self.kept.append(b"x" * (1 << 20))
        elif self.kind == "files":
            self.kept.append(open("/dev/null", "rb"))  # noqa: SIM115
        elif self.kind == "threads":
            self.kept.append(threading.Thread(target=time.sleep, args=(3600,), daemon=True))
            self.kept[-1].start()

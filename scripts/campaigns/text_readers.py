"""Readers of saved chats and of settings in text form."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from campaigns.mutations import mutated, other_json
from campaigns.readers import ACCEPTED, WrongError, small_model, try_context
from minicache_cpp import CacheSpec, Llama, MiniCacheError
from minicache_cpp.chat.conversation import Conversation, template_of
from minicache_cpp.chat.file import FORMAT, load_chat, save_chat
from minicache_cpp.chat.sampling import Sampling
from support.loaded import Loaded

SMALL: dict[str, Any] = {"n_ctx": 256, "n_batch": 64, "n_threads": 1, "n_threads_batch": 1, "verbose": False}


class ChatReader:
    """Saved chats, mostly with other values in their header."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "changed"
        model = small_model().write(folder / "model.gguf")
        self.llm = Llama(str(model), minicache="slerp:start=0,retain=0.1", **SMALL)
        self.chat = Conversation(self.llm, template_of(self.llm), "be kind", Sampling(temp=0))
        self.begin()
        save_chat(folder / "saved", self.chat)
        self.sample = (folder / "saved").read_bytes()

    def begin(self) -> None:
        self.chat.reset()
        self.chat.ask("hi", 2)

    def mutate(self, rng: random.Random) -> bytes:
        if rng.random() < 0.2:
            return mutated(rng, self.sample, [])
        line, _, state = self.sample[len(FORMAT) :].partition(b"\n")
        header = json.loads(line)
        for _ in range(rng.choice([1, 1, 2])):
            header = other_json(rng, header)
        text = b"[" * 100_000 if rng.random() < 0.01 else json.dumps(header).encode()
        return FORMAT + text + b"\n" + state

    def read(self, data: bytes) -> str:
        self.path.write_bytes(data)
        self.begin()
        before = self.llm.n_tokens, list(self.chat.messages), self.chat.text
        try:
            load_chat(self.path, self.chat)
        except MiniCacheError as error:
            after = self.llm.n_tokens, list(self.chat.messages), self.chat.text
            if after != before and "is empty now" not in str(error):
                raise WrongError(f"a refused chat has changed the conversation: {error}") from None
            raise
        try:
            self.chat.ask("and?", 2)
        except MiniCacheError:
            self.begin()
        return ACCEPTED


KEYS = [
    "start",
    "t",
    "retain",
    "window",
    "pairs",
    "pool",
    "type",
    "type_k",
    "type_v",
    "k",
    "v",
    "first",
    "last",
    "plan",
    "strict",
    "mode",
]
MODES = ["slerp", "average", "plain", "code", "aligned", "auto", "off", "f16", "q8_0", "1", "on"]
VALUES = [
    "0",
    "1",
    "0.5",
    "-1",
    "1e99",
    "nan",
    "inf",
    "f16",
    "q4_0",
    "q8_0/q4_0",
    "2:f16",
    "2:q8_0/q4_0",
    "1-2;3-4",
    "3-2",
]
VALUES += [
    "0-1;1-2",
    "99999999999999999999",
    "0x10",
    " 3 ",
    "'a,b'",
    '"',
    "x.gguf",
    "~",
    "/",
    "",
    "é",
    "\0",
    "1,5",
    "2:",
    ":",
]


class SettingsReader:
    """Settings as text: pieces of the grammar in any order, and then changed bytes."""

    def __init__(self, folder: Path) -> None:
        self.loaded = Loaded(small_model(), folder / "model.gguf")

    def mutate(self, rng: random.Random) -> bytes:
        items = [f"{rng.choice(KEYS)}={rng.choice(VALUES)}" for _ in range(rng.randint(0, 4))]
        text = rng.choice(MODES) + rng.choice([":", ":", ":", ",", ""]) + ",".join(items)
        if rng.random() < 0.2:
            text = rng.choice([text * 200, text + "," * 1000, ",".join(items), rng.choice(VALUES)])
        data = text.encode()
        return mutated(rng, data, []) if rng.random() < 0.5 else data

    def read(self, data: bytes) -> str:
        spec = CacheSpec.parse(data.decode("utf-8", "surrogateescape"))
        if CacheSpec.parse(spec.name) != spec:
            raise WrongError(f"{spec.name!r} is read as something else")
        try_context(self.loaded, spec.minicache, spec.type_k, spec.type_v)
        return ACCEPTED

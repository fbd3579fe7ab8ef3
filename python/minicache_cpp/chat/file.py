"""Saved chats: the messages, and the state of the context, so that nothing is evaluated again.

One file: a line that names the format, a line of JSON, and the native state's bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import MiniCacheError
from ..native import binding
from ..runtime.llama import set_state
from .conversation import Conversation

FORMAT = b"minicache chat 1\n"
FINGERPRINT_BYTES = 1 << 20  # of the model file: its header, and a part of its weights


def save_chat(path: Path, conversation: Conversation, cache: str) -> int:
    """Write the conversation and return the bytes; an older file stays until the new one is complete."""
    llm = conversation.llm
    state = binding.get_state(llm.ctx)
    header = {
        "model": fingerprint(llm.model_path),
        "cache": cache,
        "messages": conversation.messages,
        "system": conversation.system,
        "text": conversation.text,
        "n_keep": conversation.n_keep,
        "tokens": llm.input_ids[: llm.n_tokens].tolist(),
        "state_bytes": len(state),
    }
    start = FORMAT + json.dumps(header).encode("utf-8") + b"\n"
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(start)
            file.write(state)
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise MiniCacheError(f"{path} can't be written: {error.strerror or error}") from None
    return len(start) + len(state)


def load_chat(path: Path, conversation: Conversation, cache: str) -> None:
    """Take up a saved conversation; one that does not fit this model and cache changes nothing."""
    llm = conversation.llm
    header, state = read_chat(path)
    if header["model"] != fingerprint(llm.model_path):
        raise MiniCacheError(f"{path} was saved with another model")
    if header["cache"] != cache:
        raise MiniCacheError(f"{path} was saved with the cache {header['cache']}, and this chat has {cache}")
    tokens = header["tokens"]
    if len(tokens) > conversation.n_ctx:
        raise MiniCacheError(
            f"{path} holds {len(tokens)} tokens, and the context {conversation.n_ctx}; take a larger --ctx"
        )
    try:
        set_state(llm, state)
    except MiniCacheError as error:
        if llm.n_tokens == 0:
            conversation.reset()
        raise MiniCacheError(f"{path}: {error}") from None
    llm.input_ids[: len(tokens)] = tokens
    llm.n_tokens = len(tokens)
    conversation.sampler.reset()
    conversation.messages = header["messages"]
    conversation.system = header["system"]
    conversation.text = header["text"]
    conversation.n_keep = header["n_keep"]


def read_chat(path: Path) -> tuple[dict[str, Any], bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MiniCacheError(f"{path} can't be read: {error.strerror or error}") from None
    if not data.startswith(FORMAT):
        raise MiniCacheError(f"{path} is no saved chat")
    line, _, state = data[len(FORMAT) :].partition(b"\n")
    try:
        header = json.loads(line)
        complete = len(state) == header["state_bytes"]
        for key, kind in (
            ("model", str),
            ("cache", str),
            ("messages", list),
            ("system", list),
            ("text", str),
            ("n_keep", int),
            ("tokens", list),
        ):
            complete = complete and isinstance(header[key], kind)
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise MiniCacheError(f"{path} is damaged or incomplete")
    return header, state


def fingerprint(model_path: str) -> str:
    """Tells model files apart without reading all of them."""
    with open(model_path, "rb") as file:
        start = hashlib.sha256(file.read(FINGERPRINT_BYTES)).hexdigest()
        return f"{os.fstat(file.fileno()).st_size}-{start[:32]}"

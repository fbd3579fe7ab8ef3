"""Saved chats: the messages, and the state of the context, so that nothing has to be evaluated again.

A file has a line that names the format, a line of JSON, and the bytes of the native state.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from ..errors import MiniCacheError
from ..host.files import begins_with, refuse_streams, refuse_to_write, replacing
from ..host.paths import user_path
from ..runtime.states import native_state
from .conversation import Conversation

FORMAT = b"minicache chat 1\n"
FORMATS = b"minicache chat "  # begins the saved chats of every version
# of the model file: its header, and a part of its weights
DIGEST_BYTES = 1 << 20


def save_chat(path: str | os.PathLike[str], conversation: Conversation) -> int:
    """Writes the conversation and returns the bytes written. An older file stays until the new one is complete.

    Raises MiniCacheError where the file cannot be written, and where another file is there that is not a saved chat.
    """
    path = user_path(path)
    refuse_to_write(path, "a saved chat", lambda one: begins_with(one, FORMATS))
    llm = conversation.llm
    state = llm.save_state().llama_state
    header = {
        "model": model_digest(llm.model_path),
        "cache": llm.cache_spec.name,
        "planned": llm.cache_spec.plan_file is not None,
        "messages": conversation.messages,
        "system": conversation.system,
        "text": conversation.text,
        "n_keep": conversation.n_keep,
        "tokens": llm.input_ids[: llm.n_tokens].tolist(),
        "state_bytes": len(state),
    }
    start = FORMAT + json.dumps(header).encode("utf-8") + b"\n"
    try:
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            file.write(start)
            file.write(state)
    except OSError as error:
        raise MiniCacheError(f"{path} cannot be written: {error.strerror or error}") from None
    return len(start) + len(state)


def load_chat(path: str | os.PathLike[str], conversation: Conversation) -> None:
    """Continues a saved conversation. One that does not fit this model and cache is refused, and nothing changes."""
    llm = conversation.llm
    header, state = read_chat(path)
    if header["model"] != model_digest(llm.model_path):
        raise MiniCacheError(f"{path} was saved with another model")
    spec = llm.cache_spec
    # The path of a plan says nothing of what is in it. The native state has the plan's hash, and refuses another plan.
    by_hash = header.get("planned", False) and spec.plan_file is not None
    if not by_hash and header["cache"] != spec.name:
        raise MiniCacheError(
            f"{path} was saved with the cache {header['cache']}, and this chat has {spec.name}; "
            "name the saved one (minicache=, --config)"
        )
    tokens = header["tokens"]
    if max(tokens, default=0) >= llm.n_vocab() or header["n_keep"] > len(tokens):
        raise MiniCacheError(
            f"{path} is damaged: it has tokens that this model does not know, or keeps too many"
        )
    if len(tokens) > conversation.n_ctx:
        raise MiniCacheError(
            f"{path} holds {len(tokens)} tokens, and the context {conversation.n_ctx}; "
            "take a larger context (n_ctx, --ctx)"
        )
    try:
        llm.load_state(native_state(llm, tokens, state))
    except MiniCacheError as error:
        if llm.n_tokens == 0:
            conversation.reset()
        saved = f", saved with the plan {header['cache']}" if by_hash else ""
        raise MiniCacheError(f"{path}{saved}: {error}") from None
    conversation.sampler.reset()
    conversation.messages = header["messages"]
    conversation.system = header["system"]
    conversation.text = header["text"]
    conversation.n_keep = header["n_keep"]


def read_chat(path: str | os.PathLike[str]) -> tuple[dict[str, Any], bytes]:
    """The header and the native state of a saved chat. Raises MiniCacheError if it is none, or damaged."""
    path = user_path(path)
    refuse_streams(path)
    try:
        with path.open("rb") as file:
            # anything else may be larger than the memory
            if file.read(len(FORMAT)) != FORMAT:
                raise MiniCacheError(f"{path} is not a saved chat")
            line, _, state = file.read().partition(b"\n")
    except OSError as error:
        raise MiniCacheError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not _is_complete(header) or header.get("state_bytes") != len(state):
        raise MiniCacheError(f"{path} is damaged or incomplete")
    return header, state


def _is_complete(header: dict[str, Any]) -> bool:
    """Whether everything is there, and of its kind."""
    texts = all(_is_text(header.get(key)) for key in ("model", "cache", "text"))
    messages = all(_are_messages(header.get(key)) for key in ("messages", "system"))
    tokens = header.get("tokens")
    numbers = isinstance(tokens, list) and all(_is_token(one) for one in tokens)
    return texts and messages and numbers and _is_token(header.get("n_keep"))


def _is_text(value: object) -> bool:
    """Whether it is a text that can be written in UTF-8. JSON may name halves of characters, which cannot."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and all(_is_text(one.get(key)) for key in ("role", "content")) for one in value
    )


def _is_token(value: object) -> bool:
    """Whether it is a whole number that llama.cpp can take for a token or a count of them."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def model_digest(model_path: str) -> str:
    """Tells model files apart without reading them whole."""
    with open(model_path, "rb") as file:
        start = hashlib.sha256(file.read(DIGEST_BYTES)).hexdigest()
        return f"{os.fstat(file.fileno()).st_size}-{start[:32]}"

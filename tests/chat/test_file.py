"""Saved chats."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp import Llama, MiniCacheError
from minicache_cpp.chat.console import template_of
from minicache_cpp.chat.conversation import Conversation
from minicache_cpp.chat.file import load_chat, save_chat
from minicache_cpp.chat.sampling import Sampling
from support.chats import QUIET, SMALL, talk


@QUIET
def test_a_saved_chat_continues_as_before(llm: Llama, tmp_path: Path) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 30)
    save_chat(tmp_path / "saved", conversation, "cache")
    expected = conversation.ask("and?", 30)
    conversation.reset()
    conversation.ask("something else", 5)
    load_chat(tmp_path / "saved", conversation, "cache")
    answer = conversation.ask("and?", 30)
    assert answer.text == expected.text
    assert answer.n_prompt == expected.n_prompt


@QUIET
def test_a_saved_chat_that_does_not_fit_changes_nothing(
    llm: Llama, models: dict[str, Path], tmp_path: Path
) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 10)
    saved = tmp_path / "saved"
    save_chat(saved, conversation, "cache")
    data = saved.read_bytes()
    (tmp_path / "short").write_bytes(data[:-10])
    (tmp_path / "other").write_bytes(b"GGUF" + data)
    (tmp_path / "wrong").write_bytes(data.replace(b'"n_keep": ', b'"n_kept": '))
    with Llama(str(models["no system"]), **SMALL) as other:
        save_chat(tmp_path / "model", Conversation(other, template_of(other), None, Sampling()), "cache")
    before, messages = llm.input_ids[: llm.n_tokens].tolist(), list(conversation.messages)
    for name, cache, words in (
        ("saved", "q4_0", "saved with the cache"),
        ("short", "cache", "incomplete"),
        ("other", "cache", "is not a saved chat"),
        ("wrong", "cache", "damaged"),
        ("model", "cache", "another model"),
        ("none", "cache", "cannot be read"),
    ):
        with pytest.raises(MiniCacheError, match=words):
            load_chat(tmp_path / name, conversation, cache)
        assert llm.input_ids[: llm.n_tokens].tolist() == before
        assert conversation.messages == messages
    with pytest.raises(MiniCacheError, match="cannot be written"):
        save_chat(tmp_path / "no" / "such", conversation, "cache")
    assert conversation.ask("hello", 4).n_tokens == 4

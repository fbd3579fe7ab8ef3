"""A conversation reads only what is new, makes room when its context is full, and can be stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import minicache_cpp
from minicache_cpp import Llama, MiniCache, MiniCacheError
from minicache_cpp.chat.conversation import Conversation, template_of
from minicache_cpp.native.binding import llama_h
from support.chats import QUIET, SMALL, talk
from support.llamas import batches
from support.loaded import Loaded


@QUIET
def test_history_is_not_read_again(llm: Llama) -> None:
    conversation = talk(llm)
    first = conversation.ask("hello", 10)
    used = llm.n_tokens
    second = conversation.ask("how are you?", 10)
    added = len(llm.tokenize(b"</s><s>user: how are you?</s><s>assistant: ", add_bos=False, special=True))
    assert second.n_prompt == added
    assert llm.n_tokens == used + added + second.n_tokens
    assert used == first.n_prompt + first.n_tokens
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 2]


@QUIET
def test_a_template_that_rewrites_history_costs_only_what_it_changes(llm: Llama) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 10)
    # as a template does that drops a model's thoughts
    conversation.messages[-1]["content"] = "something else"
    opening = len(llm.tokenize(b"<s>system: be kind</s><s>user: hello</s><s>assistant: ", False, True))
    answer = conversation.ask("more", 4)
    whole = llm.n_tokens - 4
    assert answer.n_prompt == whole - opening
    assert llm.detokenize(llm.input_ids[opening:whole].tolist()).startswith(b"something else")


@QUIET
def test_what_a_rewritten_history_takes_out_of_the_window_is_read_anew(models: dict[str, Path]) -> None:
    with Llama(str(models["chat"]), n_batch=256, minicache=MiniCache(window=16), **SMALL) as llm:
        conversation = talk(llm)
        conversation.ask("hello", 40)
        conversation.messages[-1]["content"] = "something else"
        with batches(llm) as read:
            answer = conversation.ask("more", 4)
        # but for the first token, which stays in the window
        assert read == [15 + answer.n_prompt, 1, 1, 1, 1]


@QUIET
def test_a_context_that_is_rounded_up_is_shifted_when_what_was_asked_for_is_full(
    models: dict[str, Path],
) -> None:
    with Llama(str(models["chat"]), **{**SMALL, "n_ctx": 300}) as llm:
        assert llm.n_ctx() == 512
        conversation = talk(llm)
        assert conversation.n_ctx == 300
        dropped = [conversation.ask("hello, tell me more", 60).dropped for _ in range(6)]
        assert sum(dropped) > 0
        assert llm.n_tokens <= 300
        with pytest.raises(MiniCacheError, match="the context holds 300"):
            conversation.ask("x" * 400)


@QUIET
def test_a_shift_reads_nothing_anew(models: dict[str, Path]) -> None:
    with Llama(str(models["chat"]), n_batch=256, minicache=MiniCache(window=16), **SMALL) as llm:
        conversation = talk(llm)
        for i in range(3):
            conversation.ask(f"question {i}", 60)
        with batches(llm) as read:
            answer = conversation.ask("more", 60)
        assert answer.dropped > 16
        assert read == [answer.n_prompt, *[1] * 60]


@QUIET
def test_a_full_context_shifts_and_keeps_the_system_message(llm: Llama) -> None:
    conversation = talk(llm)
    start = llm.tokenize(b"<s>system: be kind</s><s>user: ", add_bos=False, special=True)
    dropped = 0
    for i in range(8):
        answer = conversation.ask(f"question {i}", 60)
        dropped += answer.dropped
        assert answer.n_tokens == 60
        assert llm.n_tokens <= 256
        memory = llama_h.llama_get_memory(llm.ctx)
        assert llama_h.llama_memory_seq_pos_min(memory, 0) == 0
        assert llama_h.llama_memory_seq_pos_max(memory, 0) == llm.n_tokens - 1
    assert dropped > 256
    assert llm.input_ids[: conversation.n_keep].tolist() == start


@QUIET
def test_a_context_that_cannot_shift_forgets_the_oldest_messages(
    llm: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "can_shift", False)  # as for a recurrent model
    conversation = talk(llm)
    conversation.ask("first", 40)
    conversation.ask("second", 40)
    answer = conversation.ask("third", 1000)
    assert answer.finish == "full"
    assert llm.n_tokens == 256
    answer = conversation.ask("fourth", 10)
    assert answer.n_tokens == 10
    assert answer.dropped > 0
    assert [message["content"] for message in conversation.messages[:2]] == ["be kind", "fourth"]


@QUIET
def test_quantized_keys_of_small_heads_shift(models: dict[str, Path]) -> None:
    minicache = MiniCache(start=0, type_k="q8_0", type_v="q8_0")  # there is no plain layer either
    with Llama(str(models["small heads"]), minicache=minicache, **SMALL) as llm:
        conversation = talk(llm)
        assert sum(conversation.ask(f"question {i}", 60).dropped for i in range(4)) > 0


@QUIET
def test_a_message_longer_than_the_context_changes_nothing(llm: Llama) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 10)
    before, messages = llm.input_ids[: llm.n_tokens].tolist(), list(conversation.messages)
    with pytest.raises(MiniCacheError, match="larger context"):
        conversation.ask("x" * 300, 10)
    assert llm.input_ids[: llm.n_tokens].tolist() == before
    assert conversation.messages == messages
    assert conversation.ask("hello", 4).n_tokens == 4


@QUIET
@pytest.mark.parametrize("checks_before", [0, 1, 4])
def test_stopping_leaves_the_conversation_in_order(llm: Llama, checks_before: int) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 5)
    checks = 0

    def stopped() -> bool:
        nonlocal checks
        checks += 1
        return checks > checks_before

    used = llm.n_tokens
    answer = conversation.ask("x" * 80, 20, stopped=stopped)  # the question takes two batches
    assert answer.finish == "interrupted"
    if checks_before < 2:  # stopped while the question was read
        assert (answer.text, llm.n_tokens, len(conversation.messages)) == ("", used, 3)
    else:
        assert answer.n_tokens == checks_before - 1
        assert len(conversation.messages) == 5
    again = conversation.ask("next", 3)
    if checks_before >= 2:
        assert again.n_prompt == len(llm.tokenize(b"</s><s>user: next</s><s>assistant: ", False, True))


def test_templates_without_a_system_role_get_it_in_the_first_question(models: dict[str, Path]) -> None:
    with Llama(str(models["no system"]), **SMALL) as llm:
        template = template_of(llm)
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert template.render(messages) == "<s>user: be kind\n\nhello</s><s>assistant: "
    assert template.opening(messages[:1]) == "<s>user: be kind\n\n"


def test_a_conversation_is_public_and_needs_nothing_but_a_model(random_model: Loaded, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "minicache": MiniCache(), "verbose": False}
    with minicache_cpp.Llama(str(random_model.path), **settings) as llm:
        conversation = minicache_cpp.Conversation(llm, sampling=minicache_cpp.Sampling(temp=0))
        pieces: list[str] = []
        answer = conversation.ask("Hello", max_tokens=5, on_text=pieces.append)
        assert "".join(pieces) == answer.text
        minicache_cpp.save_chat(tmp_path / "a.chat", conversation)
        other = minicache_cpp.Conversation(llm)
        assert other.messages == []
        minicache_cpp.load_chat(tmp_path / "a.chat", other)
        assert other.messages == conversation.messages
        assert [one["role"] for one in other.messages] == ["user", "assistant"]

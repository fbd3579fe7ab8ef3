"""Saved chats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from minicache_cpp import Llama, MiniCacheError
from minicache_cpp.chat.conversation import Conversation, template_of
from minicache_cpp.chat.file import FORMAT, load_chat, save_chat
from minicache_cpp.chat.sampling import Sampling
from oracle.model import Config
from support.chats import QUIET, SMALL, talk
from support.loaded import Loaded
from support.plans import ALL_PAIRS, coded


@QUIET
def test_a_saved_chat_continues_as_before(llm: Llama, tmp_path: Path) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 30)
    save_chat(tmp_path / "saved", conversation)
    expected = conversation.ask("and?", 30)
    conversation.reset()
    conversation.ask("something else", 5)
    load_chat(tmp_path / "saved", conversation)
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
    save_chat(saved, conversation)
    data = saved.read_bytes()
    (tmp_path / "short").write_bytes(data[:-10])
    (tmp_path / "other").write_bytes(b"GGUF" + data)
    (tmp_path / "wrong").write_bytes(data.replace(b'"n_keep": ', b'"n_kept": '))
    with Llama(str(models["no system"]), **SMALL) as other:
        save_chat(tmp_path / "model", Conversation(other, template_of(other), None, Sampling()))
    with Llama(str(models["chat"]), minicache="q4_0", **SMALL) as other:
        save_chat(tmp_path / "cache", Conversation(other, template_of(other), None, Sampling()))
    before, messages = llm.input_ids[: llm.n_tokens].tolist(), list(conversation.messages)
    for name, words in (
        ("cache", "saved with the cache q4_0, and this chat has slerp:"),
        ("short", "incomplete"),
        ("other", "is not a saved chat"),
        ("wrong", "damaged"),
        ("model", "another model"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(MiniCacheError, match=words):
            load_chat(tmp_path / name, conversation)
        assert llm.input_ids[: llm.n_tokens].tolist() == before
        assert conversation.messages == messages
    with pytest.raises(MiniCacheError, match="cannot be written"):
        save_chat(tmp_path / "no" / "such", conversation)
    assert conversation.ask("hello", 4).n_tokens == 4


@QUIET
@pytest.mark.parametrize("name", ["model", "text", "empty"])
def test_a_chat_is_saved_over_nothing_but_a_saved_chat(
    llm: Llama, models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 4)
    content = {"model": models["chat"].read_bytes(), "text": b"my notes", "empty": b""}[name]
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(MiniCacheError, match="is there already and is not a saved chat"):
        save_chat(path, conversation)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    # one of another version is a saved chat too
    path.write_bytes(b"minicache chat 0\nold")
    save_chat(path, conversation)
    load_chat(path, conversation)


def test_a_saved_chat_goes_by_what_is_in_the_plan(random_model: Loaded, tmp_path: Path) -> None:
    """A plan that was moved or copied is the same plan, and another one under the same path is another plan."""
    plan, moved, saved = tmp_path / "a.plan.gguf", tmp_path / "moved.plan.gguf", tmp_path / "saved"
    coded(random_model, Config(ALL_PAIRS, window=16), plan)
    with Llama(str(random_model.path), minicache=plan, **SMALL) as llm:
        conversation = talk(llm)
        conversation.ask("hello", 20)
        save_chat(saved, conversation)
        expected = conversation.ask("and?", 10)
    shutil.move(plan, moved)
    coded(random_model, Config(ALL_PAIRS, window=16), plan, seed=1)
    with Llama(str(random_model.path), minicache=moved, **SMALL) as llm:
        conversation = talk(llm)
        load_chat(saved, conversation)
        assert conversation.ask("and?", 10).text == expected.text
    with Llama(str(random_model.path), minicache=plan, **SMALL) as llm:
        conversation = talk(llm)
        with pytest.raises(MiniCacheError, match=r"a\.plan\.gguf: .*nothing has changed: .*another plan"):
            load_chat(saved, conversation)
    with (
        Llama(str(random_model.path), minicache="q8_0", **SMALL) as llm,
        pytest.raises(MiniCacheError, match=r"saved with the cache .*, and this chat has q8_0"),
    ):
        load_chat(saved, talk(llm))


@QUIET
@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": [1, "a"]},
        {"tokens": [1, None]},
        {"tokens": [10**30]},
        {"tokens": [-1]},
        {"tokens": [2**31 - 1]},
        {"tokens": [1, 2]},  # other tokens than the state's
        {"n_keep": -1},
        {"n_keep": 10_000},
        {"n_keep": True},
        {"messages": [None]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"system": [{"role": 1, "content": "a"}]},
        {"state_bytes": None},
    ],
    ids=str,
)
def test_a_saved_chat_of_other_values_is_refused(
    llm: Llama, tmp_path: Path, changes: dict[str, object]
) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 10)
    saved = tmp_path / "saved"
    save_chat(saved, conversation)
    form, header, state = saved.read_bytes().split(b"\n", 2)
    saved.write_bytes(b"\n".join([form, json.dumps(json.loads(header) | changes).encode(), state]))
    with pytest.raises(MiniCacheError, match=r"damaged|has other tokens"):
        load_chat(saved, conversation)
    assert conversation.ask("hello", 4).n_tokens == 4


@QUIET
def test_a_saved_chat_of_too_many_brackets_is_refused(llm: Llama, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    saved.write_bytes(FORMAT + b"[" * 100_000 + b"\n")
    with pytest.raises(MiniCacheError, match="damaged"):
        load_chat(saved, talk(llm))

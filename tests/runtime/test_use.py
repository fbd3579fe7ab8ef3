"""A Llama that is used after its end, by two threads at once, or with nothing: an exception, and it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_cpp import LogitsProcessorList

from minicache_cpp import AbortedError, Conversation, Llama, MiniCacheError
from minicache_cpp.runtime.turns import CLOSED, OTHER_THREAD
from support import tiny_models
from support.llamas import SETTINGS
from support.loaded import Loaded


@pytest.fixture
def llm(random_model: Loaded) -> Iterator[Llama]:
    with Llama(str(random_model.path), minicache="q8_0", **SETTINGS) as llm:
        yield llm


@pytest.mark.parametrize(
    "use",
    [
        lambda llm: llm.eval([3, 4]),
        lambda llm: llm("hello", max_tokens=2),
        lambda llm: llm.tokenize(b"hello"),
        lambda llm: llm.detokenize([3]),
        lambda llm: llm.n_ctx(),
        lambda llm: llm.n_vocab(),
        lambda llm: llm.save_state(),
        lambda llm: llm.embed("hello"),
        lambda llm: llm.kv_report(),
        lambda llm: next(llm.generate([3, 4])),
        lambda llm: llm.create_chat_completion([{"role": "user", "content": "hello"}]),
    ],
)
def test_a_closed_one_says_so(llm: Llama, use: Callable[[Llama], Any]) -> None:
    llm.eval([3, 4])
    llm.close()
    with pytest.raises(MiniCacheError, match="this Llama is closed"):
        use(llm)
    llm.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda llm, chat: chat.ask("hello", max_tokens=20),
        lambda llm, chat: llm("hello", max_tokens=20),
        lambda llm, chat: list(llm("hello", max_tokens=20, stream=True)),
        lambda llm, chat: llm.tokenize(b"hello " * 2000),
        lambda llm, chat: llm.detokenize([3, 4, 5] * 2000),
        lambda llm, chat: llm.kv_report(),
        lambda llm, chat: chat.reset(),
    ],
)
@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1])
def test_closing_waits_for_what_another_thread_does(
    llm: Llama, use: Callable[[Llama, Conversation], Any], delay: float
) -> None:
    """Nothing native runs on what has been freed: this test would end the process."""
    chat, ended = Conversation(llm), []

    def go_on() -> None:
        try:
            while True:
                use(llm, chat)
        except MiniCacheError as error:
            ended.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    time.sleep(delay)
    llm.close()
    thread.join(30)
    assert not thread.is_alive()
    assert isinstance(ended[0], AbortedError) or str(ended[0]) == CLOSED


def test_an_answer_cannot_close_what_it_is_made_with(llm: Llama) -> None:
    def close(text: str) -> None:
        with pytest.raises(MiniCacheError, match="by what it calls itself"):
            llm.close()
        closed.append(text)

    closed: list[str] = []
    answer = Conversation(llm).ask("hello", max_tokens=5, on_text=close)
    assert "".join(closed) == answer.text
    assert llm.kv_report().bytes > 0


def test_two_threads_get_an_exception_and_right_results(llm: Llama) -> None:
    """Whoever gets no exception gets what it would get alone, and afterwards the context works as before."""
    prompt = tiny_models.prompt(40)
    llm.eval(prompt)
    expected = np.ctypeslib.as_array(llm._ctx.get_logits(), (llm.n_vocab(),)).copy()
    refused: list[MiniCacheError] = []
    start = threading.Barrier(4)

    def use() -> None:
        start.wait()
        for _ in range(50):
            try:
                llm.eval([5])
            except MiniCacheError as error:
                refused.append(error)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused
    assert all("another thread is using this Llama" in str(error) for error in refused)
    llm.reset()
    llm._ctx.kv_cache_clear()
    llm.eval(prompt)
    np.testing.assert_array_equal(np.ctypeslib.as_array(llm._ctx.get_logits(), (llm.n_vocab(),)), expected)


def test_completions_of_two_threads_are_right_or_refused(llm: Llama) -> None:
    """A completion is many steps: between them nothing of another thread's comes in."""

    def complete(prompt: str) -> str:
        done: Any = llm(prompt, max_tokens=6, temperature=0)
        return str(done["choices"][0]["text"])

    prompts = ["hello", "other words", "third"]
    expected = {prompt: complete(prompt) for prompt in prompts}
    refused, wrong = [], []
    start = threading.Barrier(len(prompts))

    def use(prompt: str) -> None:
        start.wait()
        for _ in range(30):
            try:
                if (text := complete(prompt)) != expected[prompt]:
                    wrong.append(text)
            except MiniCacheError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=use, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert refused
    assert set(refused) == {OTHER_THREAD}
    assert {prompt: complete(prompt) for prompt in prompts} == expected


def in_a_thread(use: Callable[[], Any]) -> Any:
    """What `use` returns in another thread, or the MiniCacheError that it raises there."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(use())
        except MiniCacheError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_a_stream_keeps_other_threads_out_until_it_ends(llm: Llama) -> None:
    def stream() -> Any:
        return llm("hello", max_tokens=5, temperature=0, stream=True)

    whole = [chunk["choices"][0]["text"] for chunk in stream()]
    chunks = stream()
    # the steps of one stream may be taken in several threads, one after the other
    texts = [next(chunks)["choices"][0]["text"], in_a_thread(lambda: next(chunks))["choices"][0]["text"]]
    texts.append(next(chunks)["choices"][0]["text"])
    for use in (lambda: llm("other", max_tokens=1), lambda: llm.eval([3]), llm.save_state, llm.reset):
        assert str(in_a_thread(use)) == OTHER_THREAD
    assert texts + [chunk["choices"][0]["text"] for chunk in chunks] == whole
    assert in_a_thread(lambda: llm.eval([3])) is None


@pytest.mark.parametrize("end", [lambda chunks: chunks.close(), lambda chunks: None], ids=["closed", "left"])
def test_a_stream_that_its_own_thread_has_left_gives_way(llm: Llama, end: Callable[[Any], None]) -> None:
    expected: Any = llm("other", max_tokens=4, temperature=0)
    chunks: Any = llm("hello", max_tokens=9, temperature=0, stream=True)
    next(chunks)
    end(chunks)
    again: Any = llm("other", max_tokens=4, temperature=0)
    assert again["choices"] == expected["choices"]
    with pytest.raises((MiniCacheError, StopIteration)) as gone:
        next(chunks)
    assert isinstance(gone.value, StopIteration) or "used for something else since" in str(gone.value)
    assert in_a_thread(lambda: llm.eval([3])) is None


def test_what_cannot_be_done_is_an_exception(llm: Llama) -> None:
    """llama.cpp ends the process for each of these, or fails without a reason."""
    for use, reason in (
        (llm.sample, "no logits"),
        (lambda: llm.detokenize([3, 10**9]), "token 1000000000: this model has those from 0 to"),
        (lambda: llm.detokenize([-1]), "token -1"),
        (lambda: llm.generate([]), "without any token"),
        (lambda: llm.embed([]), "no text"),
    ):
        with pytest.raises(MiniCacheError, match=reason):
            use()
    llm.eval([3, 4])
    with pytest.raises(MiniCacheError, match="no logits"):
        llm.sample(idx=0)
    assert 0 <= llm.sample(temp=0) < llm.n_vocab()


def test_what_a_thread_does_in_its_turn_is_not_interrupted(llm: Llama) -> None:
    with llm.in_turn():
        llm.eval([3, 4])
        with llm.in_turn():
            assert str(in_a_thread(lambda: llm.eval([5]))) == OTHER_THREAD
        assert str(in_a_thread(lambda: llm("hello", max_tokens=1))) == OTHER_THREAD
        llm.sample()
    assert in_a_thread(lambda: llm.eval([5])) is None


def test_what_a_step_calls_cannot_close_it(llm: Llama) -> None:
    def close(ids: Any, scores: Any) -> Any:
        with pytest.raises(MiniCacheError, match="cannot be closed by what it calls"):
            llm.close()
        return scores

    llm("hello", max_tokens=2, logits_processor=LogitsProcessorList([close]))


def test_closing_ends_a_step_of_another_thread(random_model: Loaded) -> None:
    llm = Llama(str(random_model.path), minicache="q8_0", **SETTINGS)
    begun, errors = threading.Event(), []

    def use() -> None:
        try:
            while True:
                begun.set()
                llm.eval([5])
                llm.n_tokens = 0
        except MiniCacheError as error:
            errors.append(str(error))

    thread = threading.Thread(target=use)
    thread.start()
    begun.wait()
    llm.close()
    thread.join(30)
    assert len(errors) == 1
    assert any(words in errors[0] for words in ("closed", "another thread", "ended by abort()"))


def test_a_text_without_tokens_is_not_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_bos(writer: gguf.GGUFWriter) -> None:
        add_tokenizer(writer)
        writer.add_add_bos_token(False)
        writer.add_add_space_prefix(False)

    add_tokenizer = tiny_models.add_tokenizer
    monkeypatch.setattr(tiny_models, "add_tokenizer", no_bos)
    model = tiny_models.random_model().write(tmp_path / "model.gguf")
    with Llama(str(model), embedding=True, minicache="q8_0", **SETTINGS) as llm:
        for texts in ("", ["a", ""]):
            with pytest.raises(MiniCacheError, match="without any token"):
                llm.embed(texts)
        assert len(llm.embed(["a", "b"])) == 2

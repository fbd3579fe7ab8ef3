"""A Llama that is used after its end, by two threads at once, or with nothing: an exception, and it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from minicache_cpp import Llama, MiniCacheError
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
    llm.reset()  # type: ignore[no-untyped-call]
    llm._ctx.kv_cache_clear()
    llm.eval(prompt)
    np.testing.assert_array_equal(np.ctypeslib.as_array(llm._ctx.get_logits(), (llm.n_vocab(),)), expected)


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

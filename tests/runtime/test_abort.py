"""abort() and close() from another thread end an evaluation, a long prompt too, and the Llama goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minicache_cpp import AbortedError, Llama, MiniCacheError
from minicache_cpp.native.binding import llama_h
from support.family_models import FAMILIES
from support.loaded import Loaded
from support.tiny_models import prompt

# one ubatch, which takes seconds
SETTINGS: dict[str, Any] = {
    "n_ctx": 8192, "n_batch": 8192, "n_ubatch": 8192, "n_threads": 1, "n_threads_batch": 1, "verbose": False,
}  # fmt: skip
LONG = prompt(8000)
LATE = 30.0  # seconds, after which a thread that should have ended hangs


def logits(llm: Llama) -> npt.NDArray[np.float32]:
    row = llama_h.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(row, (llm.n_vocab(),)).copy()


class Reading:
    """A prompt that another thread reads."""

    def __init__(self, llm: Llama, tokens: list[int]) -> None:
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.read, args=(llm, tokens))
        self.thread.start()
        while not llm._busy and self.thread.is_alive():
            time.sleep(0.001)

    def read(self, llm: Llama, tokens: list[int]) -> None:
        try:
            llm.eval(tokens)
        except BaseException as error:
            self.error = error

    def end(self) -> BaseException | None:
        self.thread.join(LATE)
        assert not self.thread.is_alive()
        return self.error


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen35"])
def model(
    request: pytest.FixtureRequest, random_model: Loaded, tmp_path_factory: pytest.TempPathFactory
) -> str:
    if request.param == "llama":
        return str(random_model.path)
    return str(FAMILIES[request.param].write(tmp_path_factory.mktemp("model") / "model.gguf"))


@pytest.mark.filterwarnings("ignore:the layers merged here")
def test_a_prompt_is_ended_and_the_llama_goes_on(model: str) -> None:
    """As a Llama goes on that has never begun it."""
    spec = "slerp:start=0,retain=1,pool=f16"
    with Llama(model, minicache=spec, **SETTINGS) as llm, Llama(model, minicache=spec, **SETTINGS) as fresh:
        for one in (llm, fresh):
            one.eval(LONG[:20])
        reading = Reading(llm, LONG)
        llm.abort()
        assert isinstance(reading.end(), AbortedError)
        if llm.n_tokens == 0:  # a recurrent state cannot be cut back
            assert llm._is_hybrid
            llm.eval(LONG[:20])
        assert llm.n_tokens == 20
        for one in (llm, fresh):
            one.eval([5, 6, 7])
        assert np.abs(logits(llm) - logits(fresh)).max() <= 1e-3 * np.abs(logits(fresh)).max()


def test_without_an_evaluation_abort_does_nothing(random_model: Loaded) -> None:
    with Llama(str(random_model.path), **SETTINGS) as llm:
        llm.abort()
        llm.eval([5, 6, 7])
        assert llm.n_tokens == 3


def test_close_ends_what_another_thread_reads(random_model: Loaded) -> None:
    llm = Llama(str(random_model.path), **SETTINGS)
    reading = Reading(llm, LONG)
    llm.close()
    assert isinstance(reading.end(), AbortedError)
    with pytest.raises(MiniCacheError, match="closed"):
        llm.eval([5])
    llm.abort()


def test_a_stream_of_answers_is_ended(random_model: Loaded, tmp_path: Path) -> None:
    """By whoever reads it, between two tokens: the next evaluation begins anew."""
    with Llama(str(random_model.path), **{**SETTINGS, "n_ctx": 512}) as llm:
        stream = llm.create_completion("abc", max_tokens=50, stream=True)
        next(stream)
        llm.abort()
        stream.close()
        assert llm.create_completion("abc", max_tokens=3)["usage"]["completion_tokens"] > 0

"""Where tokens are taken back, the window holds the tokens before them exactly again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from minicache_cpp import Llama, MiniCache
from minicache_cpp.runtime.exact_window import ExactWindow
from support import tiny_models
from support.contexts import nmse
from support.family_models import FAMILIES
from support.llamas import SETTINGS, batches

WINDOW = 16
MOVING = 15  # the window's tokens but for the first one, which stays in it
# nothing but the window is kept as it was, and the pair has nothing in common, so that the window matters most
LOSSY = MiniCache(retain=0.0, window=WINDOW)
TOKENS = tiny_models.prompt(200)


def logits(llm: Llama) -> NDArray[np.float32]:
    return np.array(llm._ctx.get_logits()[: llm.n_vocab()], np.float32)


@pytest.fixture
def llm(path: str) -> Iterator[Llama]:
    with Llama(path, minicache=LOSSY, **SETTINGS) as llm:
        yield llm


@pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")
def test_tokens_after_a_rewind_see_what_they_would_have_seen(llm: Llama) -> None:
    llm.eval(TOKENS[:100])
    llm.eval(TOKENS[100:101])
    expected = logits(llm)
    found = {}
    for size in (MOVING, 0):  # 0: as if nothing was read anew
        llm.reset()
        llm.eval(TOKENS[:100])
        for token in TOKENS[120:160]:
            llm.eval([token])
        llm.exact_window.size = size
        llm.n_tokens = 100
        llm.eval(TOKENS[100:101])
        assert llm.n_tokens == 101
        assert llm.input_ids[:101].tolist() == TOKENS[:101]
        found[size] = nmse(logits(llm), expected)
    # what is left of the difference: the tokens that were read anew saw merged tokens before the window
    assert found[MOVING] < 0.1 * found[0]


@pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")
@pytest.mark.parametrize(
    ("taken_back", "again"), [(1, 0), (MOVING // 2, 0), (MOVING // 2 + 1, MOVING), (60, MOVING), (95, 5)]
)
def test_so_many_tokens_are_read_anew(llm: Llama, taken_back: int, again: int) -> None:
    llm.eval(TOKENS[:100])
    llm.n_tokens -= taken_back
    with batches(llm) as read:
        llm.eval([7])
        llm.eval([8])
    assert read == [again + 1, 1]
    assert llm.n_tokens == 102 - taken_back


@pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")
def test_asking_for_another_answer_reads_the_window_anew(llm: Llama) -> None:
    question = TOKENS[:60]
    first = llm(question, max_tokens=30, temperature=0)
    with batches(llm) as read:
        again = llm(question, max_tokens=30, temperature=0)
    # the last token of a question that is in the cache is always read, for its logits
    assert read[0] == MOVING + 1
    assert set(read[1:]) == {1}
    assert len(again["choices"][0]["text"]) > 0
    assert first["usage"] == again["usage"]


def test_without_a_window_nothing_is_read_anew(path: str) -> None:
    for minicache in (None, MiniCache(start=4, type_k="q8_0", type_v="q8_0")):
        with Llama(path, minicache=minicache, **SETTINGS) as llm:
            llm.exact_window.read(0, 100)
            llm.eval(TOKENS[:20])
            llm.n_tokens = 10
            with batches(llm) as read:
                llm.eval([7])
            assert read == [1]


def test_a_model_that_stays_plain_has_no_window(tmp_path: Path) -> None:
    model = str(FAMILIES["deepseek2"].write(tmp_path / "latent.gguf"))
    with Llama(model, minicache=LOSSY, **SETTINGS) as llm:
        assert llm.exact_window.size == 0


def test_small_rewinds_add_up() -> None:
    window = ExactWindow(16)
    window.read(0, 100)
    assert window.to_read_again(100) == 0
    assert window.to_read_again(95) == 0
    window.read(95, 96)
    assert window.first == 84
    assert window.to_read_again(90) == 16  # ten of the sixteen before are lost, four by the rewind before
    window.read(90, 120)
    assert window.to_read_again(120) == 0


def test_what_is_dropped_or_restored_leaves_the_window_whole() -> None:
    window = ExactWindow(16)
    window.read(0, 100)
    window.dropped(40)
    assert window.to_read_again(60) == 0
    assert window.to_read_again(50) == 16
    window.restored(50)
    assert window.to_read_again(50) == 0
    window.restored(8)
    assert window.to_read_again(3) == 0  # all that there is

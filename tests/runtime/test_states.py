"""Saved states of a `Llama`, and the caches of states that llama_cpp has."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError, MiniCacheWarning
from minicache_cpp.native.binding import llama_h
from minicache_cpp.text.bundled import evaluation_files
from support import tiny_models
from support.llamas import SETTINGS, batches

import llama_cpp  # isort: skip  (after minicache_cpp, so that it loads our library)
from llama_cpp.llama_cache import LlamaDiskCache

TEXT = "abcdefghijklmnopqrstuvwxyz, and once more: abcdefghijklmnopqrstuvwxyz"
CACHES = [None, MiniCache(type_k="q8_0", type_v="q8_0", window=16)]
ANSWER: dict[str, Any] = {"max_tokens": 8, "temperature": 0}


def answer(llm: Llama) -> str:
    return str(llm(TEXT, **ANSWER)["choices"][0]["text"])


@pytest.fixture(params=["memory", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return llama_cpp.LlamaRAMCache() if request.param == "memory" else LlamaDiskCache(str(tmp_path / "cache"))


@pytest.mark.parametrize("minicache", CACHES)
def test_a_state_holds_no_scores_that_nobody_asked_for(
    parallel_path: str, minicache: MiniCache | None
) -> None:
    with Llama(parallel_path, minicache=minicache, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(100))
        state = llm.save_state()
        # the tokens, whose array llama_cpp's own load_state() takes over, and a little for the pickle itself
        assert len(pickle.dumps(state)) < state.llama_state_size + llm.input_ids.nbytes + 2000
        assert state.input_ids[:100].tolist() == tiny_models.prompt(100)
        assert set(state.input_ids[100:].tolist()) == {-1}
        llm.eval([7])
        expected = llm.sample(temp=0.0)
        llm.load_state(pickle.loads(pickle.dumps(state)))
        llm.eval([7])
        assert llm.sample(temp=0.0) == expected


def test_a_state_of_other_tokens_than_it_names_is_refused(parallel_path: str) -> None:
    with Llama(parallel_path, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(40))
        state = llm.save_state()
        state.n_tokens = 30
        with pytest.raises(MiniCacheError, match="other tokens than the 30"):
            llm.load_state(state)
        assert llm.n_tokens == 0
        llm.eval([7])


def test_a_state_with_all_scores_keeps_them(parallel_path: str) -> None:
    with Llama(parallel_path, logits_all=True, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(40))
        scores, state = llm.scores[:40].copy(), llm.save_state()
        llm.reset()
        llm.eval(tiny_models.prompt(50, seed=3))
        llm.load_state(state)
        assert np.array_equal(llm.scores[:40], scores)
        with Llama(parallel_path, **SETTINGS) as other:
            other.load_state(state)
            assert other.n_tokens == 40
            own = other.save_state()
        with pytest.raises(MiniCacheError, match="save it with logits_all=True, or load it without"):
            llm.load_state(own)
        assert llm.n_tokens == 40


@pytest.mark.parametrize("minicache", CACHES)
def test_a_state_with_scores_that_nobody_wrote_is_still_read(
    parallel_path: str, minicache: MiniCache | None
) -> None:
    """As earlier versions saved it, and as llama_cpp's own Llama does."""
    with Llama(parallel_path, minicache=minicache, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(60))
        state = llm.save_state()
        state.scores = llm._scores.copy()
        assert state.scores.shape == (60, llm.n_vocab())
        llm.reset()
        llm.load_state(state)
        assert llm.n_tokens == 60


def test_llama_cpps_own_llama_loads_a_plain_state(parallel_path: str) -> None:
    upstream = llama_cpp.Llama(parallel_path, **SETTINGS)
    with Llama(parallel_path, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(60))
        state = llm.save_state()
        llm.eval([7])
        expected = llm.sample(temp=0.0)
    upstream.load_state(state)
    upstream.eval([7])
    assert upstream.sample(temp=0.0) == expected
    upstream.close()


@pytest.mark.parametrize("minicache", CACHES)
def test_a_state_goes_into_a_context_of_another_size(parallel_path: str, minicache: MiniCache | None) -> None:
    with Llama(parallel_path, minicache=minicache, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(200))
        state = llm.save_state()
        llm.eval([7])
        expected = llm.sample(temp=0.0)
    with Llama(parallel_path, minicache=minicache, **{**SETTINGS, "n_ctx": 512, "n_batch": 64}) as longer:
        longer.load_state(state)
        longer.eval([7])
        assert longer.sample(temp=0.0) == expected
        longer.eval(tiny_models.prompt(100))
        too_long = longer.save_state()
    with Llama(parallel_path, minicache=minicache, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(20))
        with pytest.raises(MiniCacheError, match="301 tokens, and this context has room for 256"):
            llm.load_state(too_long)
        assert llm.n_tokens == 20


def test_a_cached_state_that_fits_is_used(parallel_path: str, cache: Any) -> None:
    with Llama(parallel_path, minicache=MiniCache(), **SETTINGS) as llm:
        llm.set_cache(cache)
        expected = answer(llm)
    with Llama(parallel_path, minicache=MiniCache(), **SETTINGS) as llm:
        llm.set_cache(cache)
        with batches(llm) as read:
            assert answer(llm) == expected
        assert max(read) < len(TEXT)


@pytest.mark.filterwarnings("always::minicache_cpp.MiniCacheWarning")
@pytest.mark.parametrize("minicache", [None, MiniCache(t=0.5)], ids=["plain", "another t"])
def test_a_cached_state_that_does_not_fit_is_a_miss(
    parallel_path: str, minicache: MiniCache | None, cache: Any
) -> None:
    """The warning says why, the answer is that of a Llama without a cache, and the state stays for whom it fits."""
    with Llama(parallel_path, minicache=minicache, **SETTINGS) as llm:
        expected = answer(llm)
    with Llama(parallel_path, minicache=MiniCache(), **SETTINGS) as first:
        first.set_cache(cache)
        first(TEXT, **{**ANSWER, "max_tokens": 4})
        n_states = len(cache.cache_state if hasattr(cache, "cache_state") else cache.cache)
        with Llama(parallel_path, minicache=minicache, **SETTINGS) as llm:
            llm.set_cache(cache)
            with pytest.warns(MiniCacheWarning, match="is not used, and its tokens are read anew: .*refused"):
                assert answer(llm) == expected
            assert llm.n_tokens >= len(TEXT)
        n_after = len(cache.cache_state if hasattr(cache, "cache_state") else cache.cache)
        assert n_after == n_states + 1


def changed(**parts: Any) -> Callable[[llama_cpp.LlamaState], object]:
    """A state with other parts; a part that is ... is missing."""

    def change(state: llama_cpp.LlamaState) -> object:
        vars(state).update(parts)
        for name in [name for name, part in parts.items() if part is ...]:
            delattr(state, name)
        return state

    return change


DAMAGES: dict[str, Callable[[llama_cpp.LlamaState], object]] = {
    "number": lambda state: 5,
    "nothing": lambda state: None,
    "parts": vars,
    "tokens": lambda state: state.input_ids,
    "no seed": changed(seed=...),
    "tokens in a list": changed(input_ids=[1, 2, 3]),
    "no tokens": changed(input_ids=None),
    "tokens that are no numbers": changed(input_ids=np.array(["a"] * 300)),
    "a count that is no number": changed(n_tokens="40"),
    "too many tokens": changed(n_tokens=10_000),
    "no native state": changed(llama_state=None),
    "a shorter native state": changed(llama_state=b"short"),
    "no scores": changed(scores=None),
}


# as long as such a value is in its memory, a cache cannot count its bytes, and keeps nothing
@pytest.mark.filterwarnings("ignore:a state is not kept in the cache")
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_state_is_a_miss(parallel_path: str, cache: Any, damage: str) -> None:
    with Llama(parallel_path, minicache=MiniCache(), **SETTINGS) as llm:
        expected = answer(llm)
        value = DAMAGES[damage](llm.save_state())
        inner = cache.cache if isinstance(cache, LlamaDiskCache) else cache.cache_state
        inner[tuple(llm.tokenize(TEXT.encode())[:40])] = value
        llm.reset()
        llm.set_cache(cache)
        with pytest.warns(MiniCacheWarning, match="read anew: it is no state, or a damaged one"):
            assert answer(llm) == expected
        n_tokens = llm.n_tokens
        with pytest.raises(MiniCacheError, match="is no state, or a damaged one, and nothing has changed"):
            llm.load_state(value)
        assert llm.n_tokens == n_tokens


def test_a_cache_that_fails_costs_no_answer(
    parallel_path: str, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a pickle or a database is damaged, or a disk full."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Llama(parallel_path, minicache=MiniCache(), **SETTINGS) as llm:
        expected = answer(llm)
        llm.reset()
        llm.set_cache(cache)
        for name in ("__getitem__", "__setitem__"):
            monkeypatch.setattr(type(cache), name, fail)
        with (
            pytest.warns(MiniCacheWarning, match="read anew: it cannot be read .*No space left"),
            pytest.warns(
                MiniCacheWarning, match="a state is not kept in the cache of this Llama: .*No space left"
            ),
        ):
            assert answer(llm) == expected


def test_a_state_that_is_loaded_by_hand_is_still_refused(parallel_path: str) -> None:
    with Llama(parallel_path, minicache=MiniCache(), **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(40))
        state = llm.save_state()
    with Llama(parallel_path, minicache=MiniCache(t=0.5), **SETTINGS) as llm:
        llm.set_cache(llama_cpp.LlamaRAMCache())
        with pytest.raises(MiniCacheError, match=r"nothing has changed: .* t = 0\.6, here 0\.5"):
            llm.load_state(state)


@pytest.mark.parametrize("cut", [1, 1000, 0.5])
@pytest.mark.parametrize("whole", [True, False], ids=["session", "sequence"])
@pytest.mark.parametrize("minicache", CACHES)
def test_a_file_that_ends_too_early_is_refused(
    parallel_path: str, tmp_path: Path, minicache: MiniCache | None, whole: bool, cut: float
) -> None:
    """By llama.h's own functions, which server programs use; upstream's end the process or read what is not there."""
    tokens, path = tiny_models.prompt(60), tmp_path / "state"
    name, room = os.fsencode(path), (llama_h.llama_token * 256)()
    n_read = ctypes.c_size_t()
    array = (llama_h.llama_token * len(tokens))(*tokens)
    with Llama(parallel_path, minicache=minicache, **SETTINGS) as llm:

        def load() -> bool:
            if whole:
                return bool(llama_h.llama_state_load_file(llm.ctx, name, room, 256, n_read))
            return bool(llama_h.llama_state_seq_load_file(llm.ctx, name, 0, room, 256, n_read))

        def end() -> int:
            return int(llama_h.llama_memory_seq_pos_max(llama_h.llama_get_memory(llm.ctx), 0)) + 1

        llm.eval(tokens)
        if whole:
            assert llama_h.llama_state_save_file(llm.ctx, name, array, len(tokens))
        else:
            assert llama_h.llama_state_seq_save_file(llm.ctx, name, 0, array, len(tokens))
        assert load()
        llm.eval([7])
        size = path.stat().st_size
        os.truncate(path, size - int(cut * size if cut < 1 else cut))
        assert not load()
        # a plain cache has dropped its cells by then
        assert end() == (0 if minicache is None else 61)
        llm.n_tokens = end()
        llm.eval(tokens)
        assert llm.n_tokens == end()


def test_a_state_of_codes_is_smaller_than_they_are(smollm2: Path, smollm2_plan: Path) -> None:
    """Between two states of one text, so that what does not grow with it, such as the window, does not count."""
    with Llama(str(smollm2), minicache=str(smollm2_plan), n_ctx=512, n_threads=1, verbose=False) as llm:
        tokens = llm.tokenize(evaluation_files()[0].read_bytes()[:3000])[:384]
        llm.eval(tokens[:128])
        short = llm.save_state()
        llm.eval(tokens[128:])
        long = llm.save_state()
        report = llm.kv_report()
        token_bytes = (report.bytes - report.fixed_bytes) / report.n_cells
        assert 0.85 < (long.llama_state_size - short.llama_state_size) / 256 / token_bytes < 0.96
        llm.load_state(short)
        llm.eval(tokens[128:])
        assert llm.save_state().llama_state == long.llama_state

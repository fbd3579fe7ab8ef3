"""`Llama` with MiniCache does what llama_cpp's own does: streaming, grammars, states, pickling and embeddings."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError
from support import tiny_models
from support.llamas import SETTINGS
from support.loaded import Loaded

import llama_cpp  # isort: skip  (after minicache_cpp, so that it loads our library)

QUESTION = [{"role": "user", "content": "How are you?"}]


def greedy(llm: Llama, n: int) -> list[int]:
    """Continues the context with its `n` likeliest tokens."""
    tokens = []
    for _ in range(n):
        tokens.append(llm.sample(temp=0.0))
        llm.eval(tokens[-1:])
    return tokens


@pytest.fixture(params=["plain", "minicache"])
def llm(request: pytest.FixtureRequest, parallel_path: str) -> Llama:
    minicache = MiniCache(type_k="q8_0", type_v="q8_0") if request.param == "minicache" else None
    return Llama(parallel_path, minicache=minicache, seed=1, **SETTINGS)


def test_chat_streaming_gives_the_answer_in_pieces(llm: Llama) -> None:
    whole = llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0)
    llm.reset()
    pieces = llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0, stream=True)
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text
    assert text == whole["choices"][0]["message"]["content"]


def test_a_grammar_rules_the_answer(llm: Llama) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "a" ("b" | "c") "a"', verbose=False)
    answer = llm("hello", grammar=grammar, max_tokens=8, temperature=1.0)
    assert answer["choices"][0]["text"] in ("aba", "aca")


def test_a_saved_state_continues_where_it_was(llm: Llama) -> None:
    llm.eval(tiny_models.prompt(70))
    state = llm.save_state()
    llm.eval([7])
    expected = greedy(llm, 20)
    llm.reset()
    llm.eval(tiny_models.prompt(30, seed=5))
    llm.load_state(state)
    assert llm.n_tokens == 70
    llm.eval([7])
    assert greedy(llm, 20) == expected


def test_a_refused_state_leaves_the_context_usable(parallel_path: str) -> None:
    with Llama(parallel_path, minicache=MiniCache(), **SETTINGS) as other:
        other.eval(tiny_models.prompt(40))
        foreign = other.save_state()
    with Llama(parallel_path, minicache=MiniCache(t=0.5), **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(50, seed=3))
        kept = llm.input_ids[:50].tolist()
        own = llm.save_state()
        for state in (foreign, cut_short(own)):
            with pytest.raises(MiniCacheError, match="refused"):
                llm.load_state(state)
            assert llm.n_tokens == 50
            assert llm.input_ids[:50].tolist() == kept
        llm.eval([9])
        found = greedy(llm, 10)
        llm.reset()
        llm.eval(tiny_models.prompt(50, seed=3))
        llm.eval([9])
        assert greedy(llm, 10) == found


def test_a_plain_context_survives_a_refused_state(parallel_path: str) -> None:
    with Llama(parallel_path, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(50))
        with pytest.raises(MiniCacheError, match="refused"):
            llm.load_state(cut_short(llm.save_state()))
        # llama.cpp's own cache may be empty now, and the tokens are counted accordingly
        llm.eval([9])
        assert llm.n_tokens in (1, 51)


def cut_short(state: llama_cpp.LlamaState) -> llama_cpp.LlamaState:
    size = state.llama_state_size // 2
    return llama_cpp.LlamaState(
        state.input_ids, state.scores, state.n_tokens, state.llama_state[:size], size, state.seed
    )


def test_pickling_keeps_the_setting(path: str) -> None:
    settings = MiniCache(start=4, type_k="q8_0", type_v="q8_0")
    with Llama(path, minicache=settings, **SETTINGS) as llm:
        copy = pickle.loads(pickle.dumps(llm))
    with copy:
        assert copy.minicache == settings
        assert copy.kv_report().pairs == [(4, 5)]


def test_embeddings_are_untouched(path: str) -> None:
    with Llama(path, embedding=True, **SETTINGS) as llm:
        ours = llm.embed("abc abc")
    upstream = llama_cpp.Llama(path, embedding=True, **SETTINGS)
    assert np.array_equal(ours, upstream.embed("abc abc"))
    upstream.close()


@pytest.mark.filterwarnings("ignore:the layers merged here")
@pytest.mark.parametrize("spec", ["slerp:start=0,window=16", "q8_0", None])
def test_a_seed_gives_the_same_answer_on_every_call_of_a_fresh_sequence(
    random_model: Loaded, spec: str | None
) -> None:
    with Llama(str(random_model.path), minicache=spec, n_ctx=256, n_threads=1, verbose=False) as llm:

        def answer(fresh: bool) -> str:
            if fresh:
                llm.reset()
            completion = llm.create_completion(tiny_models.prompt(40), max_tokens=20, temperature=1.0, seed=7)
            return str(completion["choices"][0]["text"])

        first = answer(fresh=True)
        later = {answer(fresh=False) for _ in range(3)}
        assert answer(fresh=True) == first
        assert len(later) == 1  # which need not be the first, whose prompt was read at once

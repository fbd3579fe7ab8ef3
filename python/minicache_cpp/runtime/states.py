"""Saved states of a Llama, and llama_cpp's caches of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any

# first, because it makes llama_cpp load our library
from ..native import binding  # isort: skip
import llama_cpp
import numpy as np
from llama_cpp import LlamaState
from llama_cpp.llama_cache import BaseLlamaCache, LlamaDiskCache

from ..errors import MiniCacheError, MiniCacheWarning
from ..native.binding import llama_h

NO_TOKEN = -1
# a single number, which llama_cpp's own load_state() spreads over all places
NO_SCORES = np.zeros((1, 1), np.single)


class StateCache(BaseLlamaCache):
    """A cache of states, such as LlamaRAMCache, whose faults cost no answer, only time.

    What does not fit, is no state or cannot be read counts as a miss, and what cannot be kept is not kept; a warning
    says why. Everything else is the cache's own.
    """

    def __init__(self, cache: BaseLlamaCache) -> None:
        self.cache = cache

    @classmethod
    def of(cls, cache: BaseLlamaCache | None) -> StateCache | None:
        return cache if cache is None or isinstance(cache, cls) else cls(cache)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["cache"], name)

    @property
    def cache_size(self) -> int:
        return int(self.cache.cache_size)

    def __getitem__(self, key: Any) -> FoundState:
        try:
            state = self.cache[key]
        except KeyError:
            raise
        except Exception as error:  # of a damaged pickle or database, for instance
            raise missed(f"it cannot be read ({error!r})") from error
        if not is_state(state):
            raise missed("it is no state, or a damaged one")
        return FoundState(state, self)

    def __contains__(self, key: Any) -> bool:
        return key in self.cache

    def __setitem__(self, key: Any, state: LlamaState) -> None:
        try:
            self.cache[key] = state
        except Exception as error:  # of a full disk, for instance
            reason = f"a state is not kept in the cache of this Llama: {error!r}"
            warnings.warn(reason, MiniCacheWarning, stacklevel=3)

    def take_back(self, state: LlamaState) -> None:
        """Keeps a state that was found but not used, for the Llama that it fits."""
        if isinstance(self.cache, LlamaDiskCache):  # it drops what it finds
            self[state.input_ids[: state.n_tokens].tolist()] = state


class FoundState(LlamaState):
    """A state that a cache has found."""

    def __init__(self, state: LlamaState, source: StateCache) -> None:
        vars(self).update(vars(state))
        self.state, self.source = state, source

    def missed(self, error: MiniCacheError) -> KeyError:
        """Makes it a miss, because this Llama has refused it."""
        self.source.take_back(self.state)
        return missed(error)


def missed(why: object) -> KeyError:
    """What llama_cpp takes for a miss. The reason is given as a warning."""
    reason = f"a state in the cache of this Llama is not used, and its tokens are read anew: {why}"
    warnings.warn(reason, MiniCacheWarning, stacklevel=4)
    return KeyError(reason)


def is_state(value: object) -> bool:
    """Whether it is a state whose parts belong together, of whatever Llama."""
    if not isinstance(value, LlamaState):
        return False
    parts = vars(value)
    tokens, native = parts.get("input_ids"), parts.get("llama_state")
    return (
        isinstance(tokens, np.ndarray)
        and tokens.ndim == 1
        and tokens.dtype.kind in "iu"
        and isinstance(native, bytes | bytearray)
        and _is_count(parts.get("n_tokens"), len(tokens))
        and _is_count(parts.get("llama_state_size"), len(native))
        and isinstance(parts.get("scores"), np.ndarray)
        and isinstance(parts.get("seed"), Integral)
    )


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, Integral) and 0 <= int(value) <= most


def state_of(llm: llama_cpp.Llama) -> LlamaState:
    """The state, with scores only where there are any, which takes logits_all."""
    state = native_state(llm, llm.input_ids[: llm.n_tokens].tolist(), bytes(binding.get_state(llm.ctx)))
    if llm._logits_all:
        state.scores = llm._scores.copy()
    return state


def native_state(llm: llama_cpp.Llama, tokens: Sequence[int], native: bytes) -> LlamaState:
    """The state that has these tokens and this native state."""
    input_ids = np.full_like(llm.input_ids, NO_TOKEN)
    input_ids[: len(tokens)] = tokens
    return LlamaState(input_ids, NO_SCORES, len(tokens), native, len(native), llm._seed)


def load(llm: llama_cpp.Llama, state: LlamaState) -> None:
    """Loads a state. Nothing of the Llama changes before the native state has been accepted."""
    if not is_state(state):
        raise MiniCacheError("what is to be loaded is no state, or a damaged one, and nothing has changed")
    n_tokens = state.n_tokens
    if n_tokens > len(llm.input_ids):
        raise MiniCacheError(
            f"the saved state has {n_tokens} tokens, and this context has room for {len(llm.input_ids)}; "
            "make it with a larger n_ctx"
        )
    scores = llm.scores[:n_tokens] if llm._logits_all else None
    if scores is not None and scores.shape != state.scores.shape:
        raise MiniCacheError(
            "the saved state has no scores of all tokens, which logits_all=True asks for; "
            "save it with logits_all=True, or load it without"
        )
    load_native(llm, state.llama_state[: state.llama_state_size])
    memory = llama_h.llama_get_memory(llm.ctx)
    if memory and llama_h.llama_memory_seq_pos_max(memory, 0) != n_tokens - 1:
        # what is read next would have other positions than llama.cpp expects
        binding.clear(llm.ctx)
        llm.n_tokens = 0
        raise MiniCacheError(
            f"the saved state has other tokens than the {n_tokens} that it names, and the context is empty now"
        )
    if scores is not None:
        scores[:] = state.scores
    llm.input_ids[:n_tokens] = state.input_ids[:n_tokens]
    llm.n_tokens = n_tokens
    llm._requires_eval = True
    llm._seed = state.seed


def load_native(llm: llama_cpp.Llama, data: bytes) -> None:
    """Loads a saved native state. One that is refused leaves the context as it was or, at worst, empty."""
    if binding.set_state(llm.ctx, data):
        return
    reason = binding.last_error() or "it is damaged, or of another model, context size or cache setting"
    if llama_h.llama_memory_seq_pos_max(llama_h.llama_get_memory(llm.ctx), 0) == llm.n_tokens - 1:
        raise MiniCacheError(f"the saved state was refused, and nothing has changed: {reason}")
    # a plain cache has dropped its cells by then; what is left of them is not a sequence
    binding.clear(llm.ctx)
    llm.n_tokens = 0
    raise MiniCacheError(f"the saved state was refused, and the context is empty now: {reason}")

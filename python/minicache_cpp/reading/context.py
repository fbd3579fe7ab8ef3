"""Contexts of one sequence that batches of tokens are read into; nothing is sampled."""

from __future__ import annotations

import contextlib
from typing import Any

from ..cache.context_report import read_report
from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..native import binding
from ..native.batch import BatchToken, TokenBatch, filler_token
from ..native.binding import llama_h
from .model import NativeModel


class SequenceContext:
    """A context of one sequence, whose number is 0.

    n_batch: tokens of a batch, and of a ubatch.
    copies: whether fill_by_copies() will be called, which needs a second sequence for a moment.
    callback: llama.cpp's evaluation callback, a llama_h.ggml_backend_sched_eval_callback that the caller keeps alive.
    flash_attention: whether attention is computed in one pass; without it, its sums have another order. Only caches of
        unquantized V can do without.
    """

    # the state at the mark, or the number of tokens before it
    marked: bytearray | int = 0

    def __init__(
        self,
        model: NativeModel,
        spec: CacheSpec,
        n_ctx: int,
        n_batch: int,
        threads: int,
        copies: bool = False,
        callback: Any = None,
        flash_attention: bool = True,
    ) -> None:
        settings: dict[str, Any] = {"n_ctx": n_ctx}
        if copies:
            settings |= {"n_seq_max": 2, "kv_unified": True}
        if not flash_attention:
            settings["flash_attn_type"] = llama_h.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if callback is not None:
            settings["cb_eval"] = callback
        self.ctx = model.open_context(spec, n_batch, threads, **settings)
        with contextlib.ExitStack() as undo:
            undo.callback(binding.free_context, self.ctx)
            self.memory = llama_h.llama_get_memory(self.ctx)
            self.batch = TokenBatch(n_batch)
            undo.pop_all()
        self.n_vocab = model.n_vocab

    def kv_bytes(self) -> int:
        """Bytes of the KV cache, as allocated."""
        return read_report(self.ctx).bytes

    def evaluate(self, start: int, n_tokens: int) -> None:
        """Reads filler tokens at these positions; the logits after the last one are computed."""
        end = start + n_tokens
        tokens = (
            BatchToken(filler_token(at, self.n_vocab), at, wanted=at == end - 1) for at in range(start, end)
        )
        self.batch.decode(self.ctx, tokens)

    def fill_by_copies(self, n_done: int, n_tokens: int) -> None:
        """Fills the cache up to n_tokens with copies of the cells of its first n_done tokens, at the next positions.

        The result is that of a prompt that repeats itself, if no token saw the repetitions before it. K is turned to
        its new position as in a context shift, with the next token that is evaluated. Raises MiniCacheError where the
        positions of this cache cannot be moved.
        """
        if not llama_h.llama_memory_can_shift(self.memory):
            raise MiniCacheError(
                "this cache cannot be filled with copies, because its positions cannot be moved"
            )
        for start in range(n_done, n_tokens, n_done):
            llama_h.llama_memory_seq_cp(self.memory, 0, 1, 0, min(n_done, n_tokens - start))
            state = binding.get_state(self.ctx, 1)
            llama_h.llama_memory_seq_rm(self.memory, 1, -1, -1)
            load_sequence(self.ctx, 1, state)
            llama_h.llama_memory_seq_add(self.memory, 1, 0, -1, start)
            llama_h.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
            llama_h.llama_memory_seq_rm(self.memory, 1, -1, -1)

    def cut(self, n_tokens: int) -> None:
        """Keeps only the first tokens. Raises MiniCacheError where the model's memory cannot drop the others."""
        if not llama_h.llama_memory_seq_rm(self.memory, 0, n_tokens, -1):
            raise MiniCacheError(
                "this model's memory cannot drop a part of its tokens, as it has a recurrent state"
            )

    def mark(self) -> None:
        """Remembers what has been read so far, for back()."""
        model = llama_h.llama_get_model(self.ctx)
        if llama_h.llama_model_is_recurrent(model) or llama_h.llama_model_is_hybrid(model):
            self.marked = binding.get_state(self.ctx, 0)  # a recurrent state cannot be cut back
        else:
            self.marked = int(llama_h.llama_memory_seq_pos_max(self.memory, 0)) + 1

    def back(self) -> None:
        """Forgets what has been read since mark()."""
        if isinstance(self.marked, int):
            self.cut(self.marked)
        else:
            self.clear()
            load_sequence(self.ctx, 0, self.marked)

    def clear(self) -> None:
        """Forgets all tokens."""
        binding.clear(self.ctx)

    def close(self) -> None:
        """Frees the context."""
        self.batch.close()
        binding.free_context(self.ctx)


def load_sequence(ctx: Any, seq: int, state: Any) -> None:
    """Adds the cells of a saved state to a context, as this sequence. Raises MiniCacheError if they do not fit."""
    if not binding.set_state(ctx, state, seq):
        raise MiniCacheError(f"there is no room for the state of sequence {seq}")

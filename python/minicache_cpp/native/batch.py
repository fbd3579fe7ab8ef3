"""Batches: the tokens that a llama_context reads in one step, with their places."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..errors import MiniCacheError
from . import binding
from .binding import llama_h


class BatchToken(NamedTuple):
    token: int
    position: int
    sequence: int = 0
    wanted: bool = False  # the logits after it are computed


class TokenBatch:
    """A llama_batch with room for `size` tokens of one sequence each; close() frees it."""

    def __init__(self, size: int) -> None:
        self.batch = llama_h.llama_batch_init(size, 0, 1)

    def fill(self, tokens: Iterable[BatchToken]) -> Any:
        """Puts these tokens in place of those that were there, and returns the llama_batch."""
        batch = self.batch
        number = -1
        for number, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[number], batch.pos[number] = token, position
            batch.n_seq_id[number], batch.seq_id[number][0] = 1, sequence
            batch.logits[number] = wanted
        batch.n_tokens = number + 1
        return batch

    def decode(self, ctx: Any, tokens: Iterable[BatchToken]) -> None:
        """Makes a llama_context read tokens in one step, and waits for its device. Raises MiniCacheError on failure."""
        self.refuse_failure(binding.decode(ctx, self.fill(tokens)))

    def refuse_failure(self, status: int) -> None:
        """Raises MiniCacheError where llama_decode() of this batch did not return 0."""
        if status:
            raise MiniCacheError(f"llama_decode failed with {status} at position {self.batch.pos[0]}")

    def close(self) -> None:
        llama_h.llama_batch_free(self.batch)


def filler_token(number: int, n_vocab: int) -> int:
    """The filler token at this place: any token would do, but all caches must get the same ones."""
    return number * 7919 % n_vocab

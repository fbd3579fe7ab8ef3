"""Reads several chunks side by side, as sequences of one context."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence, Set

import numpy as np

from ..cache.settings import CacheSpec
from ..cache.size import n_cells
from ..native import binding
from ..native.batch import BatchToken, TokenBatch
from ..native.binding import llama_h
from ..reading.divergence import Floats
from ..reading.model import NativeModel
from .material import Chunk

# tokens of each chunk in a step at which nothing is measured
PROMPT_STEP = 64


class ParallelContext:
    """A context in which each chunk has a stream of the cache.

    The tokens before the first that is measured at are read like a prompt, 64 of each chunk in a step. From there on
    chunks are read as in decode, one token of each in a step: only the token itself is exact; all others, including the
    nearest, which matter most, come from the cache. With a window W, which keeps the nearest ones exact anyway, a step
    reads W/8 tokens of each chunk.
    """

    def __init__(self, model: NativeModel, spec: CacheSpec, chunks: Sequence[Chunk], threads: int) -> None:
        self.chunks, self.n_vocab = chunks, model.n_vocab
        self.step = chunks[0].at_once
        n_batch = len(chunks) * max(PROMPT_STEP, self.step)
        n_ctx = len(chunks) * n_cells(max(len(chunk.tokens) for chunk in chunks))
        self.ctx = model.open_context(
            spec, n_batch, threads, n_ctx=n_ctx, n_seq_max=len(chunks), kv_unified=False
        )
        self.batch = TokenBatch(n_batch)

    def read(
        self, on_step: Callable[[float], None] = lambda share: None
    ) -> Iterator[tuple[list[int], int, Floats]]:
        """Reads all chunks; yields (chunk numbers, index of a token, logits after it, [chunks, n_vocab]).

        Calls `on_step` with the share that has been read, before each step.

        It yields at each token from a chunk's `first` on. The logits are llama.cpp's memory: they last until the next
        step.
        """
        first = min(chunk.first for chunk in self.chunks)
        longest = max(len(chunk.tokens) for chunk in self.chunks)
        starts = [*range(0, first, PROMPT_STEP), *range(first, longest, self.step), longest]
        for start, end in itertools.pairwise(starts):
            on_step(start / longest)
            tokens = [
                (number, at)
                for number, chunk in enumerate(self.chunks)
                for at in range(start, min(end, len(chunk.tokens)))
            ]
            wanted = [one for one in tokens if one[1] >= self.chunks[one[0]].first]
            self._decode(tokens, set(wanted))
            if wanted:
                logits = np.ctypeslib.as_array(
                    llama_h.llama_get_logits(self.ctx), (len(wanted), self.n_vocab)
                )
                for at in range(start, end):
                    rows = [row for row, one in enumerate(wanted) if one[1] == at]
                    if rows:
                        yield [wanted[row][0] for row in rows], at, logits[rows]

    def _decode(self, tokens: Sequence[tuple[int, int]], wanted: Set[tuple[int, int]]) -> None:
        """Tokens as (chunk, index); the logits after those that are wanted are computed."""
        entries = (
            BatchToken(chunk.tokens[at], chunk.position + at, number, (number, at) in wanted)
            for number, at in tokens
            for chunk in [self.chunks[number]]
        )
        self.batch.decode(self.ctx, entries)

    def __enter__(self) -> ParallelContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.batch.close()
        binding.free_context(self.ctx)

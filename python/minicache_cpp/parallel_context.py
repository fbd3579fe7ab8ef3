"""Several texts read at the same time as sequences of one context, a token of each in every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from . import _native
from ._native import bindings
from .bench_context import BenchModel
from .calibration_text import Chunk
from .config import CacheSpec
from .divergence import Floats
from .errors import MiniCacheError
from .ggml_types import GGML_TYPES
from .kv_size import n_cells

STEP = 8  # tokens of each chunk that are read at once where only the window is filled


class ParallelContext:
    """A context with a stream of the cache for each chunk.

    As in decode, a token sees itself exactly and all others from the cache, the nearest ones, which matter most,
    included. Many chunks make a step worth its while. What a window keeps as it is may be read more quickly.
    """

    def __init__(self, model: BenchModel, spec: CacheSpec, chunks: Sequence[Chunk], threads: int) -> None:
        self.chunks, self.n_vocab = chunks, model.n_vocab
        params = bindings.llama_context_default_params()
        params.n_seq_max = len(chunks)
        params.kv_unified = False
        params.n_ctx = len(chunks) * n_cells(max(len(chunk.tokens) for chunk in chunks))
        self.n_fill = min(chunk.window for chunk in chunks)
        params.n_batch = params.n_ubatch = len(chunks) * (STEP if self.n_fill else 1)
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = GGML_TYPES[spec.type_k].number, GGML_TYPES[spec.type_v].number
        params.flash_attn_type = bindings.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        model.log.clear()
        with _native.creating_contexts(spec.minicache):
            self.ctx = bindings.llama_init_from_model(model.model, params)
        if self.ctx is None:
            raise MiniCacheError(f"{spec.name} can't be used: {_native.last_error() or model.log.reason()}")
        self.batch = bindings.llama_batch_init(params.n_batch, 0, 1)

    def read(self) -> Iterator[tuple[list[int], int, Floats]]:
        """Read all chunks; (chunks, index of a token, logits after it in each of them), where it is measured at.

        The logits are llama.cpp's own memory: they last until the next step.
        """
        everything = range(len(self.chunks))
        for start in range(0, self.n_fill, STEP):
            end = min(start + STEP, self.n_fill)
            self._decode([(number, at) for number in everything for at in range(start, end)], [])
        for at in range(self.n_fill, max(len(chunk.tokens) for chunk in self.chunks)):
            read = [number for number in everything if at < len(self.chunks[number].tokens)]
            wanted = [number for number in read if at >= self.chunks[number].first]
            self._decode([(number, at) for number in read], wanted)
            if wanted:
                logits = bindings.llama_get_logits(self.ctx)
                yield wanted, at, np.ctypeslib.as_array(logits, (len(wanted), self.n_vocab))

    def _decode(self, tokens: Sequence[tuple[int, int]], wanted: Sequence[int]) -> None:
        """Tokens as (chunk, index); the logits after those of the chunks that are wanted are computed."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (number, at) in enumerate(tokens):
            chunk = self.chunks[number]
            batch.token[i], batch.pos[i] = chunk.tokens[at], chunk.position + at
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, number, number in wanted
        if status := bindings.llama_decode(self.ctx, batch):
            raise MiniCacheError(f"llama_decode failed with {status} at token {tokens[0][1]}")

    def __enter__(self) -> ParallelContext:
        return self

    def __exit__(self, *_: object) -> None:
        bindings.llama_batch_free(self.batch)
        bindings.llama_free(self.ctx)

"""Several texts read at the same time, each a sequence of its own, a few tokens of each in every step."""

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


class ParallelContext:
    """A context with a stream of the cache for each chunk.

    A chunk's tokens of one step see each other exactly, and all others from the cache. Few of them in a step make that
    as in decode, where the nearest tokens, which matter most, come from the cache as well; many chunks make the step
    worth its while.
    """

    def __init__(
        self, model: BenchModel, spec: CacheSpec, chunks: Sequence[Chunk], step: int, threads: int
    ) -> None:
        self.chunks, self.step, self.n_vocab = chunks, step, model.n_vocab
        params = bindings.llama_context_default_params()
        params.n_seq_max = len(chunks)
        params.kv_unified = False
        params.n_ctx = len(chunks) * n_cells(max(len(chunk.tokens) for chunk in chunks))
        params.n_batch = params.n_ubatch = len(chunks) * step
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

    def read(self) -> Iterator[tuple[int, int, Floats]]:
        """Read all chunks; (chunk, index of a token, logits after it and those that follow) of the second halves.

        The logits are llama.cpp's own memory: they last until the next step.
        """
        batch = self.batch
        for start in range(0, max(len(chunk.tokens) for chunk in self.chunks), self.step):
            n = 0
            wanted: list[tuple[int, int, int]] = []  # chunk, index of the first token, rows
            for number, chunk in enumerate(self.chunks):
                part = chunk.tokens[start : start + self.step]
                half = len(chunk.tokens) // 2
                for i, token in enumerate(part):
                    batch.token[n], batch.pos[n], batch.n_seq_id[n] = token, chunk.position + start + i, 1
                    batch.seq_id[n][0], batch.logits[n] = number, start + i >= half
                    n += 1
                first = max(start, half)
                if (rows := start + len(part) - first) > 0:
                    wanted.append((number, first, rows))
            batch.n_tokens = n
            if status := bindings.llama_decode(self.ctx, batch):
                raise MiniCacheError(f"llama_decode failed with {status} at token {start}")
            if not wanted:
                continue
            total = sum(rows for _, _, rows in wanted)
            logits = np.ctypeslib.as_array(bindings.llama_get_logits(self.ctx), (total, self.n_vocab))
            at = 0
            for number, first, rows in wanted:
                yield number, first, logits[at : at + rows]
                at += rows

    def __enter__(self) -> ParallelContext:
        return self

    def __exit__(self, *_: object) -> None:
        bindings.llama_batch_free(self.batch)
        bindings.llama_free(self.ctx)

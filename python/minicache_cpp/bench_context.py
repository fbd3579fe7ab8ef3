"""llama.cpp contexts as the benchmark needs them: token batches in, nothing sampled."""

from __future__ import annotations

import contextlib
from pathlib import Path

from . import _native
from ._native import bindings
from .config import CacheSpec
from .errors import MiniCacheError
from .ggml_types import GGML_TYPES
from .native_log import NativeLog
from .report import read_report


class BenchModel:
    """A model that several contexts share."""

    def __init__(self, path: Path, gpu_layers: int = 0) -> None:
        self.log = NativeLog().install()
        bindings.llama_backend_init()
        params = bindings.llama_model_default_params()
        params.n_gpu_layers = 0x7FFFFFFF if gpu_layers == -1 else gpu_layers
        self.model = bindings.llama_model_load_from_file(str(path).encode(), params)
        if self.model is None:
            raise MiniCacheError(f"{path} can't be used: {self.log.reason()}")
        self.n_vocab = bindings.llama_vocab_n_tokens(bindings.llama_model_get_vocab(self.model))

    def __enter__(self) -> BenchModel:
        return self

    def __exit__(self, *_: object) -> None:
        bindings.llama_model_free(self.model)


class BenchContext:
    def __init__(self, model: BenchModel, spec: CacheSpec, n_ctx: int, n_batch: int, threads: int) -> None:
        params = bindings.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = GGML_TYPES[spec.type_k].number, GGML_TYPES[spec.type_v].number
        params.flash_attn_type = bindings.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        with _native.creating_contexts(spec.minicache), contextlib.ExitStack() as undo:
            model.log.clear()
            self.ctx = bindings.llama_init_from_model(model.model, params)
            if self.ctx is None:
                raise MiniCacheError(
                    f"{spec.name} can't be used: {_native.last_error() or model.log.reason()}"
                )
            undo.callback(bindings.llama_free, self.ctx)
            self.memory = bindings.llama_get_memory(self.ctx)
            self.batch = bindings.llama_batch_init(n_batch, 0, 1)
            undo.pop_all()
        self.n_vocab = model.n_vocab

    def kv_bytes(self) -> int:
        return read_report(self.ctx).bytes

    def evaluate(self, start: int, n_tokens: int) -> None:
        """Evaluate tokens at these positions; any would do, but all contexts get the same ones."""
        batch = self.batch
        batch.n_tokens = n_tokens
        for i in range(n_tokens):
            batch.token[i] = (start + i) * 7919 % self.n_vocab
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == n_tokens - 1
        if status := bindings.llama_decode(self.ctx, batch):
            raise MiniCacheError(f"llama_decode failed with {status} at token {start}")
        bindings.llama_synchronize(self.ctx)

    def cut(self, n_tokens: int) -> None:
        """Keep the first tokens only."""
        bindings.llama_memory_seq_rm(self.memory, 0, n_tokens, -1)

    def clear(self) -> None:
        bindings.llama_memory_clear(self.memory, True)

    def close(self) -> None:
        bindings.llama_batch_free(self.batch)
        bindings.llama_free(self.ctx)

"""llama.cpp contexts as the benchmark needs them: token batches in, nothing sampled."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

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

    def open_context(self, spec: CacheSpec, n_batch: int, threads: int, **settings: Any) -> Any:
        """A context with this cache, which whoever asks for it frees; settings: other llama_context_params."""
        params = bindings.llama_context_default_params()
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = GGML_TYPES[spec.type_k].number, GGML_TYPES[spec.type_v].number
        params.flash_attn_type = bindings.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.no_perf = True
        for name, value in settings.items():
            setattr(params, name, value)
        self.log.clear()
        with _native.creating_contexts(spec.minicache):
            ctx = bindings.llama_init_from_model(self.model, params)
        if ctx is None:
            raise MiniCacheError(f"{spec.name} can't be used: {_native.last_error() or self.log.reason()}")
        return ctx

    def __enter__(self) -> BenchModel:
        return self

    def __exit__(self, *_: object) -> None:
        _native.free_model(self.model)


class BenchContext:
    """A context of one sequence, number 0.

    copies: fill_by_copies() is wanted, for which there is a second sequence for a moment.
    callback: llama.cpp's evaluation callback, a bindings.ggml_backend_sched_eval_callback that the caller keeps.
    """

    def __init__(
        self,
        model: BenchModel,
        spec: CacheSpec,
        n_ctx: int,
        n_batch: int,
        threads: int,
        copies: bool = False,
        callback: Any = None,
    ) -> None:
        settings: dict[str, Any] = {"n_ctx": n_ctx}
        if copies:
            settings |= {"n_seq_max": 2, "kv_unified": True}
        if callback is not None:
            settings["cb_eval"] = callback
        self.ctx = model.open_context(spec, n_batch, threads, **settings)
        with contextlib.ExitStack() as undo:
            undo.callback(_native.free_context, self.ctx)
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
        if status := _native.decode(self.ctx, batch):
            raise MiniCacheError(f"llama_decode failed with {status} at token {start}")

    def fill_by_copies(self, n_done: int, n_tokens: int) -> None:
        """Fill the cache up to n_tokens with copies of the cells of its n_done tokens, at the positions that follow.

        So would a prompt that says the same again and again, if no token saw what was said before. K is turned to its
        new position as in a context shift, with the next token that is evaluated.
        """
        if not bindings.llama_memory_can_shift(self.memory):
            raise MiniCacheError("this cache can't be filled by copies, as its positions can't be moved")
        for start in range(n_done, n_tokens, n_done):
            bindings.llama_memory_seq_cp(self.memory, 0, 1, 0, min(n_done, n_tokens - start))
            state = save_sequence(self.ctx, 1)
            bindings.llama_memory_seq_rm(self.memory, 1, -1, -1)
            load_sequence(self.ctx, 1, state)
            bindings.llama_memory_seq_add(self.memory, 1, 0, -1, start)
            bindings.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
            bindings.llama_memory_seq_rm(self.memory, 1, -1, -1)

    def cut(self, n_tokens: int) -> None:
        """Keep the first tokens only."""
        bindings.llama_memory_seq_rm(self.memory, 0, n_tokens, -1)

    def clear(self) -> None:
        _native.clear(self.ctx)

    def close(self) -> None:
        bindings.llama_batch_free(self.batch)
        _native.free_context(self.ctx)


def save_sequence(ctx: Any, seq: int) -> Any:
    """The state of a sequence, as load_sequence() takes it."""
    return _native.get_state(ctx, seq)


def load_sequence(ctx: Any, seq: int, state: Any) -> None:
    """Add the cells of a saved state to a context, as those of this sequence."""
    if not _native.set_state(ctx, state, seq):
        raise MiniCacheError(f"there is no room for the state of sequence {seq}")

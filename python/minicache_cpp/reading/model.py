"""A loaded model, and the contexts that are opened on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cache.contexts import creating_contexts
from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..host.interrupts import interrupts_afterwards
from ..modelfile.ggml_types import GGML_TYPES
from ..native import binding
from ..native.binding import llama_h
from ..native.log import NativeLog
from ..native.model import load_model

ALL_LAYERS = 0x7FFFFFFF


class NativeModel:
    """A model that several contexts share, with so many layers on the GPU, -1 for all."""

    def __init__(self, path: Path, gpu_layers: int = 0) -> None:
        log = NativeLog().install()
        n_gpu_layers = ALL_LAYERS if gpu_layers == -1 else gpu_layers
        self._set(load_model(path, log, n_gpu_layers=n_gpu_layers), log, True)

    @classmethod
    def borrowed(cls, model: Any) -> NativeModel:
        """A llama_model that somebody else has loaded, and will free."""
        self = cls.__new__(cls)
        # the log is the owner's
        self._set(model, NativeLog(), False)
        return self

    def _set(self, model: Any, log: NativeLog, owned: bool) -> None:
        self.model, self.log, self.owned = model, log, owned
        self.n_vocab = llama_h.llama_vocab_n_tokens(llama_h.llama_model_get_vocab(model))

    def open_context(self, spec: CacheSpec, n_batch: int, threads: int, **settings: Any) -> Any:
        """A llama_context with this cache, which the caller frees; settings: other llama_context_params, by name.

        n_batch: tokens of a batch, and of a ubatch. Raises MiniCacheError where the cache does not fit the model or the
        memory.
        """
        params = llama_h.llama_context_default_params()
        params.n_batch = params.n_ubatch = n_batch
        params.n_threads = params.n_threads_batch = threads
        params.type_k, params.type_v = GGML_TYPES[spec.type_k].number, GGML_TYPES[spec.type_v].number
        params.flash_attn_type = llama_h.LLAMA_FLASH_ATTN_TYPE_ENABLED
        # windows as small as llama.cpp's programs make them
        params.swa_full = False
        params.no_perf = True
        for name, value in settings.items():
            setattr(params, name, value)
        self.log.clear()
        with creating_contexts(spec.minicache), interrupts_afterwards():
            ctx = llama_h.llama_init_from_model(self.model, params)
        if ctx is None:
            raise MiniCacheError(f"{spec.name} cannot be used: {binding.last_error() or self.log.reason()}")
        return ctx

    def __enter__(self) -> NativeModel:
        return self

    def __exit__(self, *_: object) -> None:
        if self.owned:
            binding.free_model(self.model)

"""A loaded model, and the contexts that are opened on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cache.contexts import creating_contexts
from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..modelfile.ggml_types import GGML_TYPES
from ..native import binding
from ..native.binding import llama_h
from ..native.log import NativeLog
from ..native.model import load_model

ALL_LAYERS = 0x7FFFFFFF


class NativeModel:
    """A model that several contexts share, with so many layers on the GPU, -1 for all."""

    def __init__(self, path: Path, gpu_layers: int = 0) -> None:
        self.log = NativeLog().install()
        n_gpu_layers = ALL_LAYERS if gpu_layers == -1 else gpu_layers
        self.model = load_model(path, self.log, n_gpu_layers=n_gpu_layers)
        self.n_vocab = llama_h.llama_vocab_n_tokens(llama_h.llama_model_get_vocab(self.model))

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
        params.no_perf = True
        for name, value in settings.items():
            setattr(params, name, value)
        self.log.clear()
        with creating_contexts(spec.minicache):
            ctx = llama_h.llama_init_from_model(self.model, params)
        if ctx is None:
            raise MiniCacheError(f"{spec.name} cannot be used: {binding.last_error() or self.log.reason()}")
        return ctx

    def __enter__(self) -> NativeModel:
        return self

    def __exit__(self, *_: object) -> None:
        binding.free_model(self.model)

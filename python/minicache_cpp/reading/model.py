"""A loaded model that several contexts share."""

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


class NativeModel:
    """A model that several contexts share."""

    def __init__(self, path: Path, gpu_layers: int = 0) -> None:
        self.log = NativeLog().install()
        llama_h.llama_backend_init()
        params = llama_h.llama_model_default_params()
        params.n_gpu_layers = 0x7FFFFFFF if gpu_layers == -1 else gpu_layers
        self.model = llama_h.llama_model_load_from_file(str(path).encode(), params)
        if self.model is None:
            raise MiniCacheError(f"{path} can't be used: {self.log.reason()}")
        self.n_vocab = llama_h.llama_vocab_n_tokens(llama_h.llama_model_get_vocab(self.model))

    def open_context(self, spec: CacheSpec, n_batch: int, threads: int, **settings: Any) -> Any:
        """A context with this cache, which whoever asks for it frees; settings: other llama_context_params."""
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
            raise MiniCacheError(f"{spec.name} can't be used: {binding.last_error() or self.log.reason()}")
        return ctx

    def __enter__(self) -> NativeModel:
        return self

    def __exit__(self, *_: object) -> None:
        binding.free_model(self.model)

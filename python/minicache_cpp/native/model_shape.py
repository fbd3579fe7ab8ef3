"""What the size of a model's KV cache depends on, from its file: the header says it, or llama.cpp where it does not.

Which layers look back only a window, and which are recurrent, is mostly known to llama.cpp's code alone. So the header
of such a model is loaded there, without weights.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import MiniCacheError
from ..modelfile.gguf_file import GGUFFile
from ..modelfile.shape import Layer, LayerKind, ModelShape, header_shape
from . import binding
from .binding import llama_h
from .log import NativeLog
from .model import load_model

REASON_BYTES = 256
KINDS: dict[int, LayerKind] = {1: "grows", 4: "window", 5: "state"}  # enum llama_minicache_layer_kind


def model_shape(file: GGUFFile) -> ModelShape:
    """The shape of a language model's cache. Raises MiniCacheError if the header is not that of one."""
    shape = header_shape(file)
    if not shape.mixed:
        return shape
    status = file.path.stat()
    found = _asked(file.path, status.st_mtime_ns, status.st_size)
    if isinstance(found, str):
        return replace(shape, unknown=found)
    mixed = any(layer.kind != "grows" for layer in found.layers)
    return replace(shape, layers=list(found.layers), window=found.window, mixed=mixed, unknown=found.reason)


@dataclass(frozen=True)
class Found:
    """What llama.cpp says of a model: its layers, its window, and why no layer can be coded, "" if some can."""

    layers: tuple[Layer, ...]
    window: int
    reason: str


@functools.lru_cache(maxsize=8)
def _asked(path: Path, _time: int, _size: int) -> Found | str:
    """What llama.cpp says of a model, or why it cannot load it."""
    with NativeLog().installed() as log:
        try:
            model = load_model(
                path, log, no_alloc=True, load_mode=llama_h.LLAMA_LOAD_MODE_NONE, n_gpu_layers=0
            )
        except MiniCacheError as error:
            return str(error)
        try:
            pointer = binding.model_pointer(model)
            n_layer = llama_h.llama_model_n_layer(model)
            layers = tuple(_layer(pointer, number) for number in range(n_layer))
            windowed = any(layer.kind == "window" for layer in layers)
            return Found(layers, llama_h.llama_model_n_swa(model) if windowed else 0, _reason(pointer))
        finally:
            binding.free_model(model)


def _layer(pointer: object, number: int) -> Layer:
    raw = binding.ffi.new("struct llama_minicache_layer_shape *")
    done = binding.lib.llama_minicache_get_layer_shape(pointer, number, raw)
    binding.check(done, "llama_minicache_get_layer_shape")
    return Layer(
        n_head_kv=raw.n_head_kv,
        head_size_k=raw.head_size_k,
        head_size_v=raw.head_size_v,
        n_rot=raw.n_rot,
        kind=KINDS.get(raw.kind, "none"),
        state_bytes=raw.bytes_state,
    )


def _reason(pointer: object) -> str:
    text = binding.ffi.new("char[]", REASON_BYTES)
    binding.check(binding.lib.llama_minicache_why_not(pointer, text, REASON_BYTES), "llama_minicache_why_not")
    return binding.text(text)

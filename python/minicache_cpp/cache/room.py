"""Whether main memory has room for a model's contexts, decided before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import MiniCacheError
from ..host import memory
from ..host.units import mib
from ..modelfile.gguf_file import GGUFFile
from ..native import devices
from ..native.model_shape import model_shape
from .settings import CacheSpec
from .size import UBATCH, kv_bytes, n_cells

# what llama.cpp keeps of each cell in main memory, wherever K and V are: its position, shift and sequences
CELL_BYTES = 48
ADVICE = "take a smaller --ctx, or a smaller cache with --config"


def refuse_too_large(
    file: GGUFFile,
    n_ctx: int,
    specs: Sequence[CacheSpec],
    gpu_layers: int = 0,
    *,
    n_stream: int = 1,
    share: float = 1.0,
) -> None:
    """Raises if memory cannot hold one context of `n_ctx` tokens for each of these caches at the same time.

    The weights count too. With layers on a GPU, K, V and the weights are assumed to lie there, and only the cells
    count. n_stream: sequences of `n_ctx` tokens in each context, with a stream each. share: the part of K and V that
    counts. Raises MiniCacheError if memory is short or a cache does not fit the model.
    """
    n_contexts = len(specs) * n_stream
    if not on_host(gpu_layers):
        require_room(n_ctx, 0, n_contexts=n_contexts)
    else:
        taken = sum(known_kv_bytes(file, spec, n_ctx, n_stream=n_stream) for spec in specs)
        require_room(n_ctx, int(share * taken), file.weight_bytes, n_contexts=n_contexts)


def on_host(gpu_layers: int, offload_kqv: bool = True) -> bool:
    """Whether K and V lie in main memory: no layer is on a GPU, or they do not follow the layers, or there is none."""
    return gpu_layers == 0 or not offload_kqv or not devices.gpus()


def require_room(
    n_ctx: int, kv_bytes: int, weight_bytes: int = 0, *, n_contexts: int = 1, advice: str = ADVICE
) -> None:
    """Raises MiniCacheError if main memory cannot hold these bytes of K and V, the contexts' cells and the weights.

    Call this before allocating: the operating system kills a process that uses too much memory.
    """
    needed = kv_bytes + n_contexts * n_cells(n_ctx) * CELL_BYTES
    available = memory.available_bytes()
    if available is None or needed + weight_bytes <= available:
        return
    contexts = "a context" if n_contexts == 1 else f"{n_contexts} contexts"
    need = "needs" if n_contexts == 1 else "need"
    beside = f" beside {mib(weight_bytes)} of weights" if weight_bytes else ""
    raise MiniCacheError(
        f"{contexts} of {n_ctx:,} tokens {need} {mib(needed)}{beside}, and only {mib(available)} of memory is free; "
        f"{advice}"
    )


def known_kv_bytes(
    file: GGUFFile, spec: CacheSpec, n_ctx: int, n_ubatch: int = UBATCH, n_stream: int = 1
) -> int:
    """Returns the bytes of K and V of the sequences, or 0 if the model's header does not say what its cache takes.

    Raises MiniCacheError where the cache does not fit the model.
    """
    shape = model_shape(file)
    return 0 if shape.unknown else kv_bytes(shape, spec, n_ctx, n_stream, n_ubatch)

"""Compares what a context needs with what is free, before it is made, and explains a failure to make it."""

from __future__ import annotations

from typing import Any

from ..cache.room import known_kv_bytes, on_host, require_room
from ..cache.settings import CacheSpec
from ..cache.size import UBATCH
from ..errors import MiniCacheError
from ..host.memory import available_bytes
from ..host.units import mib
from ..modelfile.gguf_file import GGUFFile
from ..native import devices
from ..native.model_shape import model_shape


class ContextMemory:
    """The KV cache of a model that is yet to be loaded, with the arguments of llama_cpp.Llama.

    file: the model's header; None where it could not be read, and then the bytes are not known.
    """

    def __init__(self, file: GGUFFile | None, spec: CacheSpec, arguments: dict[str, Any]) -> None:
        self.n_ctx, self.kv_bytes = int(arguments.get("n_ctx", 512)), 0
        if file is not None:
            shape = model_shape(file)
            self.n_ctx = self.n_ctx or shape.n_ctx_train
            self.kv_bytes = _bytes_or_unknown(file, spec, self.n_ctx, _ubatch(arguments, self.n_ctx))
        self.on_host = on_host(
            int(arguments.get("n_gpu_layers", 0)), bool(arguments.get("offload_kqv", True))
        )

    def refuse_too_large(self, share: float = 1.0) -> None:
        """Raises if main memory cannot hold what must be there, or a share of it.

        Weights are mapped files and not counted.
        """
        needed = int(share * self.kv_bytes) if self.on_host else 0
        require_room(self.n_ctx, needed, advice="take a smaller n_ctx, or a smaller cache")

    def __str__(self) -> str:
        free = [f"{mib(gpu.free)} on {gpu.name}" for gpu in devices.gpus()]
        available = available_bytes()
        free.append(
            "unknown amounts of main memory" if available is None else f"{mib(available)} of main memory"
        )
        taken = mib(self.kv_bytes) if self.kv_bytes else "an unknown size"
        return f"the KV cache of {self.n_ctx:,} tokens takes {taken}; {' and '.join(free)} are free"


def _ubatch(arguments: dict[str, Any], n_ctx: int) -> int:
    """The tokens for which sliding-window layers have room beside their window: a ubatch, or the whole context."""
    if arguments.get("swa_full", True):
        return n_ctx
    n_batch = int(arguments.get("n_batch", UBATCH))
    return min(n_batch, int(arguments.get("n_ubatch") or UBATCH))


def _bytes_or_unknown(file: GGUFFile, spec: CacheSpec, n_ctx: int, n_ubatch: int) -> int:
    try:
        return known_kv_bytes(file, spec, n_ctx, n_ubatch)
    except MiniCacheError:
        return 0  # the settings do not fit the model, and the native library says why

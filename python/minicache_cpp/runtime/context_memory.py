"""What a context asks for and what is free, before it is made and where it could not be."""

from __future__ import annotations

from typing import Any

from ..cache.settings import CacheSpec
from ..cache.size import kv_bytes, n_cells
from ..errors import MiniCacheError
from ..host.memory import available_bytes, refuse_too_large
from ..host.units import mib
from ..modelfile.gguf_file import read_gguf
from ..modelfile.shape import model_shape
from ..native import devices

CELL_BYTES = (
    48  # that llama.cpp keeps of each cell in main memory, wherever K and V are: position, shift, sequences
)


class ContextMemory:
    """The KV cache of one sequence of a model that is yet to be loaded, with the arguments of llama_cpp.Llama."""

    def __init__(self, model_path: str, spec: CacheSpec, arguments: dict[str, Any]) -> None:
        self.n_ctx, self.kv_bytes = int(arguments.get("n_ctx", 512)), 0
        try:
            shape = model_shape(read_gguf(model_path))
            self.n_ctx = self.n_ctx or shape.n_ctx_train
            if not shape.unknown and not shape.window:  # else 0, and not known
                self.kv_bytes = kv_bytes(shape, spec, self.n_ctx)
        except (MiniCacheError, OSError):
            pass  # whatever is wrong with the file or the setting, loading it says so better
        layers = arguments.get("n_gpu_layers", 0)
        self.on_host = layers == 0 or not arguments.get("offload_kqv", True) or not devices.gpus()

    def refuse_too_large(self) -> None:
        """Raise where main memory can't hold what has to be there; weights are mapped files and not counted."""
        needed = n_cells(self.n_ctx) * CELL_BYTES + (self.kv_bytes if self.on_host else 0)
        refuse_too_large(self.n_ctx, needed, 0, "take a smaller n_ctx, or a smaller cache")

    def __str__(self) -> str:
        free = [f"{mib(gpu.free)} on {gpu.name}" for gpu in devices.gpus()]
        available = available_bytes()
        free.append(
            "an unknown part of main memory" if available is None else f"{mib(available)} of main memory"
        )
        taken = mib(self.kv_bytes) if self.kv_bytes else "an unknown size"
        return f"the KV cache of {self.n_ctx:,} tokens takes {taken}; free are {', '.join(free)}"

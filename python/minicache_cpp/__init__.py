"""MiniCache KV-cache compression (Liu et al. 2024, arXiv 2405.14366) inside llama.cpp.

    from minicache_cpp import Llama, MiniCache

    llm = Llama("model.gguf", n_ctx=4096, minicache=MiniCache(type_k="q4_0", type_v="q4_0"))

The native library and llama_cpp are loaded when something that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _library
from .config import CacheSpec, MiniCache
from .errors import MiniCacheError, MiniCacheWarning
from .report import KVReport

if TYPE_CHECKING:
    from . import kernels
    from .llama import Llama

__version__ = "0.1.0"
__all__ = ["CacheSpec", "KVReport", "Llama", "MiniCache", "MiniCacheError", "MiniCacheWarning", "kernels"]

_library.prepare()


def __getattr__(name: str) -> Any:
    if name == "Llama":
        from .llama import Llama

        return Llama
    if name == "kernels":
        return importlib.import_module(".kernels", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

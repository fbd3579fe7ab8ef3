"""MiniCache KV-cache compression (Liu et al. 2024, arXiv 2405.14366) inside llama.cpp.

    from minicache_cpp import Llama, MiniCache

    llm = Llama("model.gguf", n_ctx=4096, minicache=MiniCache(type_k="q4_0", type_v="q4_0"))

The native library and llama_cpp are loaded when something that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .cache.report import KVReport
from .cache.settings import CacheSpec, MiniCache
from .errors import AbortedError, CancelledError, MiniCacheError, MiniCacheWarning
from .native import library
from .version import __version__

if TYPE_CHECKING:
    from . import kernels
    from .calibrate.calibration import calibrate_model
    from .chat.conversation import Conversation
    from .chat.file import load_chat, save_chat
    from .chat.sampling import Sampling
    from .models.listing import NamedModel, fetch_model, list_models
    from .runtime.install import install, uninstall
    from .runtime.llama import Llama

__all__ = [
    "AbortedError",
    "CacheSpec",
    "CancelledError",
    "Conversation",
    "KVReport",
    "Llama",
    "MiniCache",
    "MiniCacheError",
    "MiniCacheWarning",
    "NamedModel",
    "Sampling",
    "__version__",
    "calibrate_model",
    "fetch_model",
    "install",
    "kernels",
    "list_models",
    "load_chat",
    "save_chat",
    "uninstall",
]

# where the names are that are loaded when they are first used
LAZY = {
    "Conversation": "chat.conversation",
    "Llama": "runtime.llama",
    "NamedModel": "models.listing",
    "Sampling": "chat.sampling",
    "calibrate_model": "calibrate.calibration",
    "fetch_model": "models.listing",
    "install": "runtime.install",
    "list_models": "models.listing",
    "load_chat": "chat.file",
    "save_chat": "chat.file",
    "uninstall": "runtime.install",
}

library.prepare()


def __getattr__(name: str) -> Any:
    if name == "kernels":
        return importlib.import_module(".kernels", __name__)
    if name in LAZY:
        return getattr(importlib.import_module(f".{LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Model files, loaded by the native library."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..errors import MiniCacheError
from ..host.interrupts import interrupts_afterwards
from .binding import llama_h
from .log import NativeLog


def load_model(path: Path, log: NativeLog, **settings: Any) -> Any:
    """The llama_model of a GGUF file, which the caller frees; settings: llama_model_params, by name.

    Raises MiniCacheError with the reason in `log`, which is to be installed, where llama.cpp cannot load the file.
    """
    llama_h.llama_backend_init()
    params = llama_h.llama_model_default_params()
    for name, value in settings.items():
        setattr(params, name, value)
    with interrupts_afterwards():  # the log is a callback
        model = llama_h.llama_model_load_from_file(os.fsencode(path), params)
    if model is None:
        raise MiniCacheError(f"{path} cannot be used: {log.reason()}")
    return model

"""GGUF files that have keys and hardly any tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from support import tiny_models


def keys_only(
    path: Path, keys: dict[str, int | list[int]], general: dict[str, int] | None = None, n_weights: int = 0
) -> Path:
    """Writes a GGUF file of six layers with a head size of 32, these keys and at most one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    base = {"block_count": 6, "embedding_length": 128, "attention.head_count": 4, "context_length": 512}
    for key, value in {**base, **keys}.items():
        if isinstance(value, list):
            writer.add_array(f"llama.{key}", value)
        else:
            writer.add_uint32(f"llama.{key}", value)
    for key, value in (general or {}).items():
        writer.add_uint16(key, value)
    if n_weights:
        writer.add_tensor("token_embd.weight", np.zeros(n_weights, np.float32))
    tiny_models.finish(writer)
    return path

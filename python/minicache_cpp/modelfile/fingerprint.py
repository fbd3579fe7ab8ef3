"""A model's fingerprint, from its file: by it, a plan says which model it belongs to.

The same number as llama_minicache_fingerprint(): FNV-1a over words of 8 bytes, of the architecture, the sizes and the
first values of the layers' norms, which conversion to another weight type does not change.
"""

from __future__ import annotations

import struct

from .ggml_types import GGML_TYPES
from .gguf_file import MOST_LAYERS, GGUFFile

SEED, PRIME, MASK = 0xCBF29CE484222325, 0x100000001B3, 2**64 - 1
NORM_BYTES = 4 * 256  # of each norm


def fingerprint(file: GGUFFile) -> str:
    """16 hexadecimal digits, equal for equal models. Raises MiniCacheError where the header's sizes make no sense."""
    n_layer = n_layers(file)
    value = hash_words(file.architecture.encode("utf-8"))
    value = hash_words(struct.pack("<II", n_layer, file.number("embedding_length")), value)
    names = [f"blk.{layer}.{norm}.weight" for layer in range(n_layer) for norm in ("attn_norm", "ffn_norm")]
    for name in [*names, "output_norm.weight"]:
        tensor = file.tensors.get(name)
        if tensor and tensor.type_number == GGML_TYPES["f32"].number:
            value = hash_words(tensor.read(NORM_BYTES), value)
    return f"{value:016x}"


def n_layers(file: GGUFFile) -> int:
    """The layers of the model itself, without those that only predict further tokens."""
    n_layer = file.number("block_count", most=MOST_LAYERS)
    return n_layer - file.number("nextn_predict_layers", most=n_layer)


def hash_words(data: bytes, value: int = SEED) -> int:
    """minicache_hash() of minicache-hash.h: FNV-1a over words of 8 bytes, the last one filled up with zeros."""
    for (word,) in struct.iter_unpack("<Q", data + b"\0" * (-len(data) % 8)):
        value = (value ^ word) * PRIME & MASK
        value ^= value >> 32
    return value

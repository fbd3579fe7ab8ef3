"""What remains of a row of numbers after it is stored in one of ggml's types."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]

TYPES = ("f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl")

F16_MAX = 65504.0

IQ4_NL = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


def is_quantized(kind: str) -> bool:
    return kind not in ("f32", "f16", "bf16")


def row_bytes(kind: str, n: int) -> int:
    """The number of bytes that `n` numbers take in a row of type `kind`."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    assert n % block == 0
    return n // block * size


def round_trip(x: Array, kind: str) -> Array:
    """Stores `x` as `kind`, row by row along the last axis, and reads it back."""
    if kind == "f32":
        return x.astype(np.float32)
    if kind == "f16":
        return x.astype(np.float32).astype(np.float16).astype(np.float32)
    rows = np.ascontiguousarray(x, dtype=np.float32).reshape(-1, x.shape[-1])
    if kind == "iq4_nl":
        return iq4_nl(rows.reshape(-1, 32)).reshape(x.shape)
    ggml_type = gguf.GGMLQuantizationType[kind.upper()]
    return gguf.quants.dequantize(gguf.quants.quantize(rows, ggml_type), ggml_type).reshape(x.shape)


def iq4_nl(blocks: Array) -> Array:
    """Rounds as ggml's iq4_nl: to the nearest of 16 unequal levels, with the best scale. gguf-py cannot write it."""
    top = np.take_along_axis(blocks, np.abs(blocks).argmax(1, keepdims=True), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(top == 0, 0, blocks * (IQ4_NL[0] / top))
        levels = IQ4_NL[np.abs(scaled[..., None] - IQ4_NL).argmin(-1)]
        weight = blocks.astype(np.float64) ** 2
        scale = (weight * levels * blocks).sum(1) / (weight * levels * levels).sum(1)
    scale = np.where(top[:, 0] == 0, 0, scale).astype(np.float16).astype(np.float32)
    return scale[:, None] * levels


def round_magnitude(x: Array) -> Array:
    """Rounds magnitudes to f16, clamped to its largest number."""
    return np.minimum(x, F16_MAX).astype(np.float32).astype(np.float16).astype(np.float64)

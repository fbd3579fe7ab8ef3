"""ggml's number formats: their numbers in the C enum, and the bytes that they take."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import MiniCacheError


@dataclass(frozen=True)
class GGMLType:
    """A number format: rows of blocks of values that are coded together."""

    name: str
    number: int  # enum ggml_type
    block: int  # values that are coded together
    block_bytes: int

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` values; `n` is rounded up to whole blocks."""
        return -(-n // self.block) * self.block_bytes


GGML_TYPES = {
    name: GGMLType(name, number, block, block_bytes)
    for name, number, block, block_bytes in [
        ("f32", 0, 1, 4),
        ("f16", 1, 1, 2),
        ("q4_0", 2, 32, 18),
        ("q4_1", 3, 32, 20),
        ("q5_0", 6, 32, 22),
        ("q5_1", 7, 32, 24),
        ("q8_0", 8, 32, 34),
        ("q8_1", 9, 32, 36),
        ("q2_k", 10, 256, 84),
        ("q3_k", 11, 256, 110),
        ("q4_k", 12, 256, 144),
        ("q5_k", 13, 256, 176),
        ("q6_k", 14, 256, 210),
        ("q8_k", 15, 256, 292),
        ("iq2_xxs", 16, 256, 66),
        ("iq2_xs", 17, 256, 74),
        ("iq3_xxs", 18, 256, 98),
        ("iq1_s", 19, 256, 50),
        ("iq4_nl", 20, 32, 18),
        ("iq3_s", 21, 256, 110),
        ("iq2_s", 22, 256, 82),
        ("iq4_xs", 23, 256, 136),
        ("i8", 24, 1, 1),
        ("i16", 25, 1, 2),
        ("i32", 26, 1, 4),
        ("i64", 27, 1, 8),
        ("f64", 28, 1, 8),
        ("iq1_m", 29, 256, 56),
        ("bf16", 30, 1, 2),
        ("tq1_0", 34, 256, 54),
        ("tq2_0", 35, 256, 66),
        ("mxfp4", 39, 32, 17),
        ("nvfp4", 40, 64, 36),
        ("q1_0", 41, 128, 18),
    ]
}
BY_NUMBER = {ggml_type.number: ggml_type for ggml_type in GGML_TYPES.values()}

CACHE_TYPES = ("f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl")
POOL_TYPES = ("f16", "q8_0", "cache")


def cache_type(name: object, what: str) -> GGMLType:
    """Returns the cache type of this name. `what` names the argument in the MiniCacheError for any other name."""
    if isinstance(name, str) and name in CACHE_TYPES:
        return GGML_TYPES[name]
    raise MiniCacheError(f"{what}={name!r} is not a cache type; choose one of {', '.join(CACHE_TYPES)}")


def plain_cache_type(value: object, what: str) -> GGMLType:
    """A type as callers of llama_cpp give it, by name or by number; plain caches may be f32 too."""
    if isinstance(value, str):
        return GGML_TYPES["f32"] if value == "f32" else cache_type(value, what)
    allowed = [GGML_TYPES[name] for name in ("f32", *CACHE_TYPES)]
    if isinstance(value, int) and not isinstance(value, bool):
        for ggml_type in allowed:
            if ggml_type.number == value:
                return ggml_type
    names = ", ".join(f"{ggml_type.name} ({ggml_type.number})" for ggml_type in allowed)
    raise MiniCacheError(f"{what}={value!r} is not a cache type; choose one of {names}")


def is_quantized(ggml_type: GGMLType) -> bool:
    """Whether the type stores blocks of values that share a scale."""
    return ggml_type.block > 1

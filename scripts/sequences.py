"""How many sequences fit into an amount of memory, for the benchmarks that fill it."""

from __future__ import annotations

from minicache_cpp.cache.settings import CacheSpec
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.modelfile.shape import ModelShape


def n_sequences(shape: ModelShape, spec: CacheSpec, n_ctx: int, budget: int) -> int:
    """How many sequences of `n_ctx` tokens, one stream each, fit in `budget` bytes."""
    one, two = (kv_bytes(shape, spec, n_ctx, n) for n in (1, 2))
    return 1 + (budget - one) // (two - one) if one <= budget else 0

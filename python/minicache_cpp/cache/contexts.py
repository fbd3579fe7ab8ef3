"""Contexts whose cache is kept as settings say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ..modelfile.ggml_types import GGML_TYPES
from ..native.binding import GGML_TYPE_COUNT, check, ffi, lib, use_env, use_off
from .settings import MODES, MiniCache


def use_params(minicache: MiniCache) -> None:
    """Contexts made on this thread hold their cache as `minicache` says, until use_off() or use_env()."""
    params = ffi.new("struct llama_minicache_params *", lib.llama_minicache_default_params())
    if isinstance(minicache.start, int):
        params.start_layer = minicache.start
    else:
        params.start, params.start_layer = minicache.start, -1
    explicit = list(minicache.pairs or ()) if minicache.plan is None else []
    pairs = ffi.new("int32_t[]", [layer for pair in explicit for layer in pair])
    if explicit:
        params.pairs, params.n_pairs = pairs, len(explicit)
    params.t, params.retain, params.strict = minicache.t, minicache.retain, minicache.strict
    params.window = minicache.window
    pool = minicache.pool_type
    params.pool_type = GGML_TYPE_COUNT if pool == "cache" else GGML_TYPES[pool].number
    params.mode = MODES.index(minicache.mode) if minicache.plan is None else 0
    plan = ffi.new("char[]", os.fsencode(minicache.plan)) if minicache.plan is not None else ffi.NULL
    params.plan = plan
    check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_PARAMS, params), "llama_minicache_use")


@contextmanager
def creating_contexts(minicache: MiniCache | None) -> Iterator[None]:
    """Contexts made inside, on this thread, hold their cache as `minicache` says, or as upstream does."""
    try:
        if minicache is None:
            use_off()
        else:
            use_params(minicache)
        yield
    finally:
        use_env()

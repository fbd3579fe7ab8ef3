"""Makes contexts that use given MiniCache settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..native.binding import check, lib, use_env, use_off
from .native_settings import native_params
from .settings import MiniCache


@contextmanager
def creating_contexts(minicache: MiniCache | None) -> Iterator[None]:
    """Within the block, contexts that this thread makes use `minicache`, or llama.cpp's own cache if it is None."""
    try:
        if minicache is None:
            use_off()
        else:
            params = native_params(minicache)
            check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_PARAMS, params), "llama_minicache_use")
        yield
    finally:
        use_env()

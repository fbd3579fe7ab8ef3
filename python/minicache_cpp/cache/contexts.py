"""Contexts whose cache is kept as settings say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..native.binding import check, lib, use_env, use_off
from .native_settings import native_params
from .settings import MiniCache


@contextmanager
def creating_contexts(minicache: MiniCache | None) -> Iterator[None]:
    """Contexts that this thread makes inside keep their cache as `minicache` says, or as upstream does."""
    try:
        if minicache is None:
            use_off()
        else:
            params = native_params(minicache)
            check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_PARAMS, params), "llama_minicache_use")
        yield
    finally:
        use_env()

"""Arguments with which `Llama` makes a small context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minicache_cpp import Llama

SETTINGS = {"n_ctx": 256, "n_batch": 128, "verbose": False, "n_threads": 1, "n_threads_batch": 1}


@contextmanager
def batches(llm: Llama) -> Iterator[list[int]]:
    """The numbers of tokens of the batches that are read inside."""
    read: list[int] = []
    decode: Callable[[object], None] = llm._ctx.decode
    llm._ctx.decode = lambda batch: (read.append(batch.batch.n_tokens), decode(batch))[1]
    yield read
    del llm._ctx.decode

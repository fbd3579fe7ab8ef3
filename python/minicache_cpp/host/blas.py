"""NumPy's linear algebra, which starts threads of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class _Limit:
    """The limit of one thread, which holds for the whole process until everyone who took it has left it."""

    def __init__(self) -> None:
        self.lock, self.wanted, self.held = threading.Lock(), 0, contextlib.ExitStack()

    def take(self) -> None:
        # imported here, as only work that is done side by side needs it
        from threadpoolctl import ThreadpoolController

        with self.lock:
            if not self.wanted:
                self.held.enter_context(ThreadpoolController().limit(limits=1, user_api="blas"))
            self.wanted += 1

    def leave(self) -> None:
        with self.lock:
            self.wanted -= 1
            if not self.wanted:
                self.held.close()


_limit = _Limit()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Everything within is done by one thread of BLAS for each thread that calls it.

    Where several threads of ours call it, its own would only wait for each other. The limit holds for the whole process
    until the last one that is within has left.
    """
    _limit.take()
    try:
        yield
    finally:
        _limit.leave()

"""Ctrl-C at a time when it cannot be raised, or is not meant to end anything."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C interrupts nothing; the code asks whether it was pressed."""
    pressed = False

    def remember(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def interrupts_afterwards() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C waits until the end; the code may ask whether it was pressed.

    For native code that calls back into Python: Python raises KeyboardInterrupt wherever it runs next, and from a
    callback no exception gets out, so that Ctrl-C would be lost.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield lambda: False
        return
    with interrupts() as pressed:
        yield pressed
    if pressed():
        handler(signal.SIGINT, None)

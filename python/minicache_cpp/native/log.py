"""llama.cpp's log: kept silent, with its last errors at hand for a message of our own."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..host.output import tell
from .binding import llama_h

ERROR, CONTINUED = 4, 5  # enum ggml_log_level


class NativeLog:
    """Receives llama.cpp's log once it is installed: keeps the errors, and prints everything if `verbose`."""

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.errors: deque[str] = deque(maxlen=20)
        self.level = 0
        # whether those who received the log before do so as well
        self.passes_on = False

    def install(self) -> NativeLog:
        """Receives the log from now on, in place of whoever received it before."""
        with _changing:
            _permanent[:] = [self]
            _foreign.clear()
            llama_h.llama_log_set(_callback, ctypes.c_void_p(0))
        return self

    @contextmanager
    def installed(self) -> Iterator[NativeLog]:
        """Receives the log inside; afterwards whoever received it before does so again."""
        with _changing:
            if not _inside:
                _foreign[:] = _current()
            _inside.append(self)
            llama_h.llama_log_set(_callback, ctypes.c_void_p(0))
        try:
            yield self
        finally:
            with _changing:
                # not always the last one: another thread's may have come after it
                _inside.remove(self)
                if not _inside and _foreign:
                    llama_h.llama_log_set(*_foreign.pop())

    @contextmanager
    def listening(self) -> Iterator[NativeLog]:
        """Keeps the errors inside, while whoever receives the log goes on doing so."""
        self.passes_on = True
        with self.installed():
            yield self

    def receive(self, level: int, text: bytes) -> None:
        self.level = self.level if level == CONTINUED else level
        line = text.decode("utf-8", "replace")
        if self.verbose:
            tell(line, end="")
        if self.level == ERROR and line.strip():
            self.errors.append(line.strip())

    def reason(self) -> str:
        """The first error since clear(), which usually caused the others, without the name of the C function."""
        if not self.errors:
            return ""
        words = self.errors[0].split(": ")
        while len(words) > 1 and " " not in words[0]:
            words.pop(0)
        return ": ".join(words)

    def clear(self) -> None:
        self.errors.clear()


def _receive(level: int, text: bytes, _: object) -> None:
    for receiver in reversed(_inside[:]):
        receiver.receive(level, text)
        if not receiver.passes_on:
            return
    for callback, data in _foreign[:]:
        callback(level, text, data)
        return
    for receiver in _permanent[:]:
        receiver.receive(level, text)


def _current() -> list[tuple[Any, Any]]:
    """The callback that receives the log and its data; empty where that is ours, or there is none."""
    callback, data = llama_h.llama_log_callback(), ctypes.c_void_p()
    llama_h.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    ours, its = (ctypes.cast(one, ctypes.c_void_p).value for one in (_callback, callback))
    return [(callback, data)] if its and its != ours else []


# guards what follows
_changing = threading.Lock()
# those inside whose blocks the log is, the latest last
_inside: list[NativeLog] = []
# who received it before the first of them: llama_cpp, or a program, which keep their callbacks themselves
_foreign: list[tuple[Any, Any]] = []
# the one that install() made its receiver
_permanent: list[NativeLog] = []
# Native code has a pointer to it for as long as the process lives. One of each receiver's own would be called when that
# is gone, where blocks of several threads end in another order than they began in.
_callback = llama_h.llama_log_callback(_receive)

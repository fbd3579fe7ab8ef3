"""llama.cpp's log: kept silent, with its last errors at hand for a message of our own."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..host.output import tell
from .binding import llama_h

ERROR, CONTINUED = 4, 5  # enum ggml_log_level


class NativeLog:
    """Receives llama.cpp's log once it is installed: keeps the errors, and prints everything if `verbose`."""

    def __init__(self, verbose: bool = False) -> None:
        self.verbose = verbose
        self.errors: deque[str] = deque(maxlen=20)
        self.level = 0
        # who received the log before, where that one goes on doing so
        self.forward: Callable[[int, bytes], None] | None = None
        # native code keeps a pointer to the callback, so install() keeps this object alive
        self.callback = llama_h.llama_log_callback(self.receive)

    def install(self) -> NativeLog:
        _installed[:] = [self]
        llama_h.llama_log_set(self.callback, ctypes.c_void_p(0))
        return self

    @contextmanager
    def installed(self) -> Iterator[NativeLog]:
        """Receives the log inside; afterwards whoever received it before does so again."""
        callback, data = llama_h.llama_log_callback(), ctypes.c_void_p()
        llama_h.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
        before = _installed[:]
        try:
            yield self.install()
        finally:
            llama_h.llama_log_set(callback, data)
            _installed[:] = before

    @contextmanager
    def listening(self) -> Iterator[NativeLog]:
        """Keeps the errors inside, while whoever receives the log goes on doing so."""
        callback, data = llama_h.llama_log_callback(), ctypes.c_void_p()
        llama_h.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
        self.forward = lambda level, text: callback(level, text, data)
        with self.installed():
            yield self

    def receive(self, level: int, text: bytes, _: object) -> None:
        if self.forward is not None:
            self.forward(level, text)
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


_installed: list[NativeLog] = []

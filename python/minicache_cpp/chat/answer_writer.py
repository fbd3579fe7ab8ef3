"""An answer's text as it grows, from the bytes of its tokens."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class AnswerWriter:
    """Passes on an answer's text as it grows: whole characters only, and nothing of a stop text."""

    def __init__(self, on_text: Callable[[str], None], stop: tuple[str, ...]) -> None:
        self.on_text = on_text
        self.stop = stop
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.written: list[str] = []
        # text that may turn out to be the beginning of a stop text
        self.held = ""
        self.stopped = False

    def write(self, data: bytes) -> None:
        self._add(self.decoder.decode(data))

    def finish(self) -> str:
        self._add(self.decoder.decode(b"", final=True))
        if not self.stopped:
            self._emit(self.held)
        return "".join(self.written)

    def _add(self, text: str) -> None:
        if self.stopped:
            return
        self.held += text
        found = [at for at in map(self.held.find, self.stop) if at >= 0]
        if found:
            self.stopped = True
            self._emit(self.held[: min(found)])
            return
        n_held = max(
            (n for stop in self.stop for n in range(1, len(stop)) if self.held.endswith(stop[:n])), default=0
        )
        ready = len(self.held) - n_held
        self._emit(self.held[:ready])
        self.held = self.held[ready:]

    def _emit(self, text: str) -> None:
        if text:
            self.written.append(text)
            self.on_text(text)

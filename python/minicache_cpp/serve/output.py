"""What llama-server writes: shown line by line, or held back until it is ready."""

from __future__ import annotations

import re
import threading
from collections import deque
from typing import IO

from ..host.notes import note
from ..host.output import tell

PREFIX = "LLAMA_MINICACHE: "  # begins what the library says of the cache
# time, level and the part of the program, as in "0.00.831.927 E cmn  common_init_: failed to …"
ERROR = re.compile(r"^[\d.]+ E (?:\w+ +)?(?P<text>.*)$")
# about the next release of llama-server, at each start
NOISE = "server default port will be changed"
LINES = 200  # of what is held back


class Output:
    """Reads in a thread of its own, so that the server never waits for a reader."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.lock = threading.Lock()
        self.is_held = not verbose
        self.lines: deque[str] = deque(maxlen=LINES)
        self.reported: list[str] = []
        self.error = ""  # the first one since the last release(), which usually caused the others

    def read(self, stream: IO[bytes]) -> None:
        """Reads until the server closes its output."""
        for raw in stream:
            self.take(raw.decode("utf-8", "replace").rstrip())

    def take(self, line: str) -> None:
        with self.lock:
            if line.startswith(PREFIX):
                self.reported.append(line.removeprefix(PREFIX))
                if not self.is_held:
                    note(self.reported[-1])
                return
            if NOISE in line:
                return
            if (found := ERROR.match(line)) and not self.error:
                self.error = found["text"]
            self.lines.append(line)
            if not self.is_held:
                tell(line)

    def release(self) -> None:
        """Shows what was held back, and from now on each line at once."""
        with self.lock:
            if self.is_held:
                for text in self.reported:
                    note(text)
                for line in self.lines:
                    tell(line)
            self.is_held, self.error = False, ""

    def reason(self) -> str:
        """Why the server ended, as far as it said: its first error, or its last words."""
        with self.lock:
            last = next((line for line in reversed(self.lines) if line), "")
            return self.error or last or "it said nothing"

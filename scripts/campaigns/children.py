"""A campaign's processes. Each says in JSON what it is about to do, so that its parent knows what has ended it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any


def say(line: Mapping[str, object]) -> None:
    """What a child says to its parent."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


class Child:
    """A process that runs this program with other arguments, and its lines."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
    ) -> None:
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, os.path.dirname(__file__), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # llama.cpp would start a debugger where it aborts, which takes seconds
            env={**os.environ, "GGML_NO_BACKTRACE": "1", **(environment or {})},
        )
        self.lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.errors: list[str] = []
        self.readers = [
            threading.Thread(target=target, daemon=True) for target in (self._read_lines, self._read_errors)
        ]
        for reader in self.readers:
            reader.start()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors[:] = [*self.errors[-3:], line.strip()[:300]]

    def next_line(self, seconds: float) -> dict[str, Any]:
        """A line of the process, or {"ended": why there is none}."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return {"ended": f"nothing for {seconds:.0f} seconds"}
        if line is not None:
            return line
        return {"ended": f"{why_ended(self.process.wait())}: {' | '.join(self.errors)}"}

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def why_ended(code: int) -> str:
    """An exit code in words, or the name of a signal."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"

"""When a context was last used."""

from __future__ import annotations

import time


class Usage:
    """When a context was last used. Several threads may ask, one at a time uses the context."""

    def __init__(self) -> None:
        self.running = False
        self.ended = -float("inf")

    def __enter__(self) -> None:
        self.running = True

    def __exit__(self, *_: object) -> None:
        self.ended = time.monotonic()
        self.running = False

    @property
    def idle_seconds(self) -> float:
        return 0.0 if self.running else time.monotonic() - self.ended

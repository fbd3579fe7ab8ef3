"""Notes beside what a command prints: lines on stderr, so that stdout has the answers alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import MiniCacheWarning
from .output import tell
from .progress import is_terminal


@contextmanager
def warnings_as_notes() -> Iterator[list[str]]:
    """Shows MiniCache's warnings as notes on stderr and collects them; those of other packages stay silent."""
    notes: list[str] = []

    def show(message: Warning | str, category: type[Warning], *_: Any) -> None:
        if issubclass(category, MiniCacheWarning):
            notes.append(str(message))
            note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", MiniCacheWarning)
        warnings.showwarning = show  # type: ignore[assignment]
        yield notes


def note(text: str) -> None:
    """Prints a line beside the answers, dim where the terminal can do that."""
    dim, normal = ("\033[2m", "\033[0m") if is_terminal() else ("", "")
    tell(f"{dim}[{text}]{normal}")

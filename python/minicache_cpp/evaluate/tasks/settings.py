"""Which tasks are put to which caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...cache.settings import CacheSpec

PROMPT_UBATCH = 64  # tokens that are read at a time, as chat reads prompts, where nobody says how many
DEFAULT_ITEMS = 8  # of a retrieval at each context and depth, where nobody says how many


@dataclass(frozen=True)
class TaskSettings:
    """Every file, and every kind of retrieval at each context and depth, is put to every cache of `specs`."""

    files: Sequence[Path]
    retrievals: Sequence[str]  # names of registry.RETRIEVALS
    contexts: Sequence[int]  # tokens of the texts of a retrieval
    # where the hidden sentence is asked for: 0 is the beginning of the text, 1 its end
    depths: Sequence[float]
    specs: Sequence[CacheSpec]
    limit: int | None = None  # items of each task, None for all of a file and a few of each retrieval
    shots: int = 0  # examples before each item, which are the first items of its file
    ubatch: int = PROMPT_UBATCH  # tokens read at a time
    threads: int = 1
    gpu_layers: int = 0

"""What an evaluation is asked to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cache.settings import CacheSpec

DEFAULT_CTX = 1024


@dataclass(frozen=True)
class Settings:
    """Every cache of `specs` is measured at each context from each first position."""

    contexts: Sequence[int]  # tokens of a chunk, and of the cache
    offsets: Sequence[int]  # positions of the first token
    specs: Sequence[CacheSpec]
    ubatch: int = 1  # tokens read at a time
    chunks: int | None = None  # of each context; None for as many as the text has, up to a limit
    score_all: bool = False  # score every token of a chunk, not only the second half
    threads: int = 1
    gpu_layers: int = 0

    def scored_from(self, n_tokens: int) -> int:
        """The index of the first token of a chunk of so many tokens that is scored."""
        return 0 if self.score_all else n_tokens // 2

    def runs(self) -> list[tuple[int, int]]:
        """(context, first position) of each run over all caches."""
        return [(n_ctx, offset) for n_ctx in self.contexts for offset in self.offsets]


def cache_specs(names: Sequence[str]) -> list[CacheSpec]:
    """Each configuration once; f16 is always among them, as the others are compared with it."""
    specs = list(dict.fromkeys(map(CacheSpec.parse, names)))
    f16 = CacheSpec.parse("f16")
    return specs if f16 in specs else [f16, *specs]

"""The tokens of an evaluation: chunks of text that caches are compared on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import MiniCacheError
from ..text.vocabulary import Vocabulary
from .settings import Settings

MOST_CHUNKS = 4  # where nobody says how many


@dataclass
class Material:
    """The text as tokens, cut up for what is measured."""

    n_vocab: int
    chunks: dict[int, list[list[int]]] = field(default_factory=dict)  # by context


def prepare(path: Path, text: str, settings: Settings) -> Material:
    """Make the text into tokens and cut it up; needs no weights. MiniCacheError where the text is too short."""
    n_bytes = len(text.encode("utf-8"))
    for n_ctx in settings.contexts:
        refuse_short_text(n_bytes, "bytes", n_ctx, settings.chunks)
    with Vocabulary(path) as vocabulary:
        tokens = vocabulary.tokenize(text)
        material = Material(vocabulary.size)
        for n_ctx in settings.contexts:
            refuse_short_text(len(tokens), "tokens", n_ctx, settings.chunks)
            n_chunks = settings.chunks or min(MOST_CHUNKS, len(tokens) // n_ctx)
            parts = spread(tokens, n_ctx, n_chunks)
            material.chunks[n_ctx] = [vocabulary.begun(part)[:n_ctx] for part in parts]
    return material


def refuse_short_text(n: int, unit: str, n_ctx: int, chunks: int | None) -> None:
    """Raise MiniCacheError where n bytes, or tokens, are too few: a token has a byte at least."""
    needed = n_ctx * (chunks or 1)
    if n < needed:
        raise MiniCacheError(
            f"the text has {n} {unit}, too few for {chunks or 1} x {n_ctx} tokens; "
            "give more --text, a smaller --ctx, or fewer --chunks"
        )


def spread(tokens: list[int], n_ctx: int, n_chunks: int) -> list[list[int]]:
    """Chunks from all over the text that do not overlap."""
    step = (len(tokens) - n_ctx) // max(1, n_chunks - 1)
    return [tokens[i * step : i * step + n_ctx] for i in range(n_chunks)]

"""The tokens a calibration works with, from text of any length: chunks to fit to, to measure on, and to check with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MiniCacheError
from ..text.files import Texts
from ..text.vocabulary import Vocabulary

CHUNK = 512  # tokens of a chunk
CONTEXT = 1024  # tokens of a context that is measured on: chunks one after the other
SHORTEST = 16  # tokens that a chunk must have
TOKEN_BYTES = 16  # more than a token of any text takes, on average
# what the chunks are for, in turn: different matters in a text come to all three
TURNS = ("fit", "measure", "fit", "check")
LEAST_CHUNKS = 4
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Chunk:
    tokens: list[int]
    position: int  # of the first token
    window: int = 0  # tokens that the caches keep unmerged: so many of the first cost nothing

    @property
    def first(self) -> int:
        """The first token that is measured at; those before it fill the window, and half of the rest the cache."""
        return (len(self.tokens) + self.window) // 2

    @property
    def at_once(self) -> int:
        """Tokens that may be read in one step: so few that a window sees to it that it is next to what decode gives."""
        return max(1, self.window // 8)


@dataclass(frozen=True)
class Material:
    """Chunks of three kinds, which have no token in common."""

    fit: list[Chunk]
    measure: list[Chunk]
    check: list[Chunk]
    description: str

    @property
    def digest(self) -> str:
        """Equal for equal tokens and positions."""
        kinds = (self.fit, self.measure, self.check)
        data = json.dumps([[(chunk.position, chunk.first, chunk.tokens) for chunk in kind] for kind in kinds])
        return hashlib.sha256(data.encode()).hexdigest()


def make_material(
    vocabulary: Vocabulary,
    paths: Sequence[str | Path],
    n_tokens: int,
    n_ctx_train: int,
    description: str = "",
    window: int = 0,
) -> Material:
    """Chunks of so many tokens together from all over the texts, which are never read whole where they are long."""
    texts = Texts(paths)
    chunk = max(CHUNK, CHUNK // 2 + window)
    n_chunk = max(LEAST_CHUNKS, n_tokens // chunk)
    length = min(chunk, n_tokens // n_chunk)
    shortest = SHORTEST + window
    if texts.size <= TOKEN_BYTES * length * n_chunk:
        parts = _cut(vocabulary.tokenize(texts.read(0, texts.size)), n_chunk, length, window)
    else:
        step = texts.size // n_chunk
        data = (texts.read(i * step, min(step, TOKEN_BYTES * length)) for i in range(n_chunk))
        parts = [vocabulary.tokenize(piece)[:length] for piece in data]
    parts = [part for part in parts if len(part) >= shortest]
    if len(parts) < LEAST_CHUNKS:
        raise MiniCacheError(
            f"the text has too few tokens to calibrate with: {LEAST_CHUNKS} chunks of {shortest} and more "
            "are needed, thousands of tokens are better; give more --text"
        )
    most = max(length, min(CONTEXT, n_ctx_train or CONTEXT))
    kinds = {turn: [part for number, part in enumerate(parts) if TURNS[number % 4] == turn] for turn in TURNS}
    kinds["measure"] = joined(kinds["measure"], most)
    # no token is measured at in the first half: read the other way round, each half has its turn
    kinds["check"] = [one for text in joined(kinds["check"], most) for one in (text, halves_swapped(text))]
    found: dict[str, list[Chunk]] = {}
    number = 0
    for kind, texts_of in kinds.items():
        found[kind] = []
        for part in texts_of:
            tokens = vocabulary.begun(part)[: max(len(part), shortest)]
            # positions all over the context, and evenly: statistics must not depend on the place
            position = int(GOLDEN * number % 1 * max(0, n_ctx_train - len(tokens)))
            found[kind].append(Chunk(tokens, position, window))
            number += 1
    return Material(found["fit"], found["measure"], found["check"], description)


def halves_swapped(tokens: list[int]) -> list[int]:
    middle = len(tokens) // 2
    return tokens[middle:] + tokens[:middle]


def joined(parts: Sequence[list[int]], most: int) -> list[list[int]]:
    """Parts one after the other in contexts of about equal length, of at most so many tokens."""
    per_context = max(1, most // max(len(part) for part in parts))
    n_context = -(-len(parts) // per_context)
    per_context = -(-len(parts) // n_context)
    groups = [parts[i : i + per_context] for i in range(0, len(parts), per_context)]
    return [[token for part in group for token in part] for group in groups]


def _cut(tokens: list[int], n_chunk: int, length: int, window: int) -> list[list[int]]:
    """Chunks of at most this length that don't overlap, evenly from all over the tokens."""
    if len(tokens) < n_chunk * length:
        length = max(SHORTEST + window, min(length, len(tokens) // n_chunk))
        long = CHUNK // 4 + window
        if len(tokens) >= 2 * LEAST_CHUNKS * long:  # enough for fewer chunks that are long
            length = max(length, long)
        n_chunk = min(n_chunk, len(tokens) // length)
    step = len(tokens) // n_chunk if n_chunk else 0
    return [tokens[i * step : i * step + length] for i in range(n_chunk)]

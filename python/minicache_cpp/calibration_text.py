"""The tokens a calibration works with, from text of any length: chunks to fit to, to measure on, and to check with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import MiniCacheError
from .vocabulary import Vocabulary

CHUNK = 512  # tokens of a chunk
SHORTEST = 16  # tokens that a chunk must have
# a chunk that is measured on gives two pieces of so many tokens and a window's: pieces are read side by side, so short
# ones are quick
PIECES = {"measure": 128, "check": 256}
TOKEN_BYTES = 16  # more than a token of any text takes, on average
# what the chunks are for, in turn: different matters in a text come to all three
TURNS = ("fit", "measure", "fit", "check", "fit", "measure", "fit", "fit")
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
    texts = Texts([Path(path) for path in paths])
    chunk = max(CHUNK, CHUNK // 2 + window)
    n_chunk = max(len(TURNS) // 2, n_tokens // chunk)
    length = min(chunk, n_tokens // n_chunk)
    shortest = SHORTEST + window
    if texts.size <= TOKEN_BYTES * length * n_chunk:
        parts = _cut(vocabulary.tokenize(texts.read(0, texts.size)), n_chunk, length, window)
    else:
        step = texts.size // n_chunk
        data = (texts.read(i * step, min(step, TOKEN_BYTES * length)) for i in range(n_chunk))
        parts = [vocabulary.tokenize(piece)[:length] for piece in data]
    parts = [part for part in parts if len(part) >= shortest]
    if len(parts) < len(TURNS) // 2:
        raise MiniCacheError(
            f"the text has too few tokens to calibrate with: {len(TURNS) // 2} chunks of {shortest} and more "
            "are needed, thousands of tokens are better; give more --text"
        )
    found: dict[str, list[Chunk]] = {turn: [] for turn in TURNS}
    for number, part in enumerate(parts):
        turn = TURNS[number % len(TURNS)]
        # positions all over the context, and evenly: statistics must not depend on the place
        position = int(GOLDEN * number % 1 * max(0, n_ctx_train - length))
        size = PIECES[turn] + window if turn in PIECES else length
        pieces = [part[:size], part[size : 2 * size]]
        pieces = [piece for piece in pieces if len(piece) >= shortest]
        found[turn] += [Chunk(vocabulary.begun(piece)[:length], position, window) for piece in pieces]
    return Material(found["fit"], found["measure"], found["check"], description)


def _cut(tokens: list[int], n_chunk: int, length: int, window: int) -> list[list[int]]:
    """Chunks of at most this length that don't overlap, evenly from all over the tokens."""
    if len(tokens) < n_chunk * length:
        length = max(SHORTEST + window, min(length, len(tokens) // n_chunk))
        long = CHUNK // 4 + window
        if len(tokens) >= len(TURNS) * long:  # enough for fewer chunks that are long
            length = max(length, long)
        n_chunk = min(n_chunk, len(tokens) // length)
    step = len(tokens) // n_chunk if n_chunk else 0
    return [tokens[i * step : i * step + length] for i in range(n_chunk)]


class Texts:
    """UTF-8 files one after the other, as one text of so many bytes."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files: list[tuple[Path, int]] = []
        for path in paths:
            try:
                if path.is_dir():
                    raise MiniCacheError(f"the text {path} is a directory; name its files")
                self.files.append((path, path.stat().st_size))
            except FileNotFoundError:
                raise MiniCacheError(f"the text {path} does not exist") from None
            except OSError as error:
                raise MiniCacheError(f"the text {path} can't be read: {error.strerror or error}") from None
        self.size = sum(size for _, size in self.files)

    def read(self, start: int, n_bytes: int) -> str:
        """The text of these bytes; a character that is cut at either end is left out."""
        pieces = []
        for path, size in self.files:
            if start < size and n_bytes > 0:
                pieces.append(_read(path, start, min(n_bytes, size - start)))
                n_bytes -= min(n_bytes, size - start)
            start = max(0, start - size)
        return "\n\n".join(pieces)


def _read(path: Path, start: int, n_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(n_bytes)
    except OSError as error:
        raise MiniCacheError(f"the text {path} can't be read: {error.strerror or error}") from None
    first = 0
    while start > 0 and first < min(3, len(data)) and data[first] & 0xC0 == 0x80:
        first += 1
    try:
        return data[first:].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.end == len(data) - first:
            return data[first : first + error.start].decode("utf-8")
        raise MiniCacheError(
            f"the text {path} is not UTF-8 (byte {start + first + error.start}); convert it first"
        ) from None

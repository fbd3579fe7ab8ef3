"""The text of a calibration, of any length, as chunks of tokens to fit to, to measure on and to check with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from ..errors import MiniCacheError
from ..text.files import Texts
from ..text.vocabulary import Vocabulary

# the fewest tokens of a chunk
SHORTEST = 16
# more bytes than a token of any text takes on average
TOKEN_BYTES = 16
LEAST_CHUNKS = 4
# the longest context that a plan is checked at, whatever it is for
MOST_CHECKED = 4096
# multiples of the golden ratio, modulo 1, are spread evenly however many there are
GOLDEN = 0.6180339887498949

# chunks that are added for the probes of all but the smallest models, which people try things out with: with so few
# texts it is chance how much a layer seems to count
MORE_TEXTS = 4


@dataclass(frozen=True)
class Cut:
    """How a text is cut into chunks, and what the chunks are for."""

    # tokens of a chunk
    chunk: int
    # tokens of the contexts that are measured on and checked with, which are several chunks one after the other
    measure: int
    check: int
    # nothing is measured in the first half of a context: whether each is read again with its halves swapped
    swapped: bool
    # how many places of its part of the text a chunk to fit to is made of
    places: int
    # what the chunks are for, in turn, so that each purpose gets some of every part of the text
    turns: tuple[str, ...]

    def at(self, n_ctx: int) -> Cut:
        """The same cut, with contexts to check with of n_ctx tokens, but at most MOST_CHECKED."""
        check = min(n_ctx, MOST_CHECKED)
        more = max(0, -(-(check - self.check) // self.chunk))
        # among the first turns, which every text is long enough for
        turns = self.turns[:LEAST_CHUNKS] + ("check",) * more + self.turns[LEAST_CHUNKS:]
        return replace(self, check=max(check, self.chunk), turns=turns)

    def probing_more(self) -> Cut:
        """The same cut, with MORE_TEXTS more chunks for the probes."""
        return replace(self, turns=self.turns + ("measure",) * MORE_TEXTS)


# of the way for users, and of that for plans that are handed on
FAST = Cut(
    512,
    512,
    512,
    False,
    # few chunks see more kinds of text if they are made of several pieces
    4,
    # eight to fit to: with five, plans of ratio 8 lost a tenth more at 4096 tokens
    ("fit", "measure", "fit", "check", "measure") + ("fit", "measure", "fit") * 3 + ("measure",),
)
# which texts are fitted to makes a difference of a seventh, so little is held back: two chunks of up to 200 for each
# other purpose
THOROUGH = Cut(
    512, 1024, 1024, True, 1, ("fit", "measure", "fit", "check", "measure", "check") + ("fit",) * 194
)


@dataclass(frozen=True)
class Chunk:
    tokens: list[int]
    # the position of the first token
    position: int
    # the window of the caches that are measured: as long as it is not full, nothing is lost
    window: int = 0

    @property
    def first(self) -> int:
        """The index of the first token that is measured at.

        The tokens before it fill the window and then half of the remaining context.
        """
        return (len(self.tokens) + self.window) // 2

    @property
    def at_once(self) -> int:
        """The tokens that are read in one step: few enough, beside the window, for results close to those of decode."""
        return max(1, self.window // 8)


@dataclass(frozen=True)
class Material:
    """Chunks of three kinds, made of different stretches of the text."""

    fit: list[Chunk]
    measure: list[Chunk]
    check: list[Chunk]
    description: str

    def beside(self, other: Material) -> Material:
        """This material and what another one has to fit to and to measure on; the check stays this one's."""
        return Material(
            [*self.fit, *other.fit],
            [*self.measure, *other.measure],
            self.check,
            f"{self.description} and {other.description}",
        )

    @property
    def digest(self) -> str:
        """Equal for equal tokens and positions."""
        kinds = (self.fit, self.measure, self.check)
        data = json.dumps([[(chunk.position, chunk.first, chunk.tokens) for chunk in kind] for kind in kinds])
        return hashlib.sha256(data.encode()).hexdigest()


class Text:
    """Files as tokens, of which any part can be read. Only of up to `most` bytes are all tokens known."""

    def __init__(self, vocabulary: Vocabulary, texts: Texts, most: int) -> None:
        self.vocabulary, self.texts = vocabulary, texts
        self.tokens = vocabulary.tokenize(texts.read(0, texts.size)) if texts.size <= most else None

    def read(self, begin: float, end: float, n: int) -> list[int]:
        """At most n tokens from the share `begin` of the text on, of those before the share `end`."""
        size = self.texts.size if self.tokens is None else len(self.tokens)
        first, last = int(begin * size), int(end * size)
        if self.tokens is not None:
            return self.tokens[first : min(last, first + n)]
        return self.vocabulary.tokenize(self.texts.read(first, min(last - first, TOKEN_BYTES * n)))[:n]


def make_material(
    vocabulary: Vocabulary,
    paths: Sequence[str | Path],
    n_tokens: int,
    n_ctx_train: int,
    description: str = "",
    window: int = 0,
    cut: Cut = THOROUGH,
) -> Material:
    """Cuts about `n_tokens` tokens in all from places spread over the texts; long files are not read completely.

    Raises MiniCacheError where the text has too few tokens.
    """
    chunk = max(cut.chunk, cut.chunk // 2 + window)
    n_chunk = max(LEAST_CHUNKS, n_tokens // chunk)
    length = min(chunk, n_tokens // n_chunk)
    shortest = SHORTEST + window
    text = Text(vocabulary, Texts(paths), TOKEN_BYTES * length * n_chunk)
    if text.tokens is not None:
        n_chunk, length = _fitting(len(text.tokens), n_chunk, length, cut.chunk // 4, window)
    parts: list[list[int]] = []
    for number in range(n_chunk):
        n_place = cut.places if cut.turns[len(parts) % len(cut.turns)] == "fit" else 1
        bounds = [(number + place / n_place) / n_chunk for place in range(n_place + 1)]
        pieces = [text.read(begin, end, length // n_place) for begin, end in pairwise(bounds)]
        part = [token for piece in pieces for token in piece]
        if len(part) >= shortest:
            parts.append(part)
    if len(parts) < LEAST_CHUNKS:
        raise MiniCacheError(
            f"{description or 'the text'} has too few tokens to calibrate with: it needs at least {LEAST_CHUNKS} "
            f"chunks of {shortest} tokens, and preferably thousands of tokens; add files with --text"
        )
    kinds = {
        kind: [part for number, part in enumerate(parts) if cut.turns[number % len(cut.turns)] == kind]
        for kind in ("fit", "measure", "check")
    }
    for kind, context in (("measure", cut.measure), ("check", cut.check)):
        most = max(length, min(context, n_ctx_train or context))
        kinds[kind] = [text[:most] for text in joined(kinds[kind], -(-most // length) * length)]
    if cut.swapped:
        kinds["check"] = [one for text in kinds["check"] for one in (text, halves_swapped(text))]
    found: dict[str, list[Chunk]] = {}
    number = 0
    for kind, texts_of in kinds.items():
        found[kind] = []
        for part in texts_of:
            tokens = vocabulary.begun(part)[: max(len(part), shortest)]
            # positions are spread evenly over the trained context, as statistics must not depend on the place
            position = int(GOLDEN * number % 1 * max(0, n_ctx_train - len(tokens)))
            found[kind].append(Chunk(tokens, position, window))
            number += 1
    return Material(found["fit"], found["measure"], found["check"], description)


def halves_swapped(tokens: list[int]) -> list[int]:
    middle = len(tokens) // 2
    return tokens[middle:] + tokens[:middle]


def joined(parts: Sequence[list[int]], most: int) -> list[list[int]]:
    """Joins parts, in their order, to contexts of about equal length, of at most `most` tokens."""
    per_context = max(1, most // max(len(part) for part in parts))
    n_context = -(-len(parts) // per_context)
    per_context = -(-len(parts) // n_context)
    contexts = [parts[i : i + per_context] for i in range(0, len(parts), per_context)]
    return [[token for part in context for token in part] for context in contexts]


def _fitting(n_tokens: int, n_chunk: int, length: int, long: int, window: int) -> tuple[int, int]:
    """How many chunks of how many tokens a text of `n_tokens` has; `n_chunk` of `length` are wanted.

    Where there are too few tokens, there are fewer chunks, which are as long as they can be if there are to be
    2 * LEAST_CHUNKS of them, but no shorter than `long` tokens beyond the window.
    """
    if n_tokens < n_chunk * length:
        # fewer chunks that are long are better than many short ones
        length = min(length, n_tokens // (2 * LEAST_CHUNKS))
        if length < long + window:
            length = max(SHORTEST + window, n_tokens // n_chunk)
        n_chunk = min(n_chunk, n_tokens // length)
    return n_chunk, length

"""Texts of a given length in tokens, with sentences hidden at given depths."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from ...errors import MiniCacheError
from ...text.vocabulary import Vocabulary
from .retrieval import Buried, Planted, n_most

BOUNDARY = re.compile(r"(?<=[.!?])\s+|\n+")  # a sentence may begin after it
# tries to reach the length; each comes closer, as the pieces of a text are made into tokens in other ways
MOST_TRIES = 8


class Haystack:
    """A text, of which each item gets another part."""

    def __init__(self, vocabulary: Vocabulary, text: str) -> None:
        self.vocabulary = vocabulary
        self.tokens = vocabulary.tokenize(text, special=False)

    def bury(self, planted: Planted, n_ctx: int, rng: random.Random) -> Buried:
        """An item whose prompt and answer fill a context of n_ctx tokens, short of it by a few at most.

        Raises MiniCacheError where the context is too small for the facts, or the text too short for the context.
        """
        room = n_ctx - n_most(planted.answer)
        n = room - self._length(_prompt("", planted))
        if n > len(self.tokens):
            raise MiniCacheError(
                f"retrieval at a context of {n_ctx} needs {n} tokens of text, and there are {len(self.tokens)}; "
                "give more --text, or a smaller --ctx"
            )
        start = rng.randint(0, len(self.tokens) - max(0, n))
        for _ in range(MOST_TRIES):
            if n < 1:
                break
            text = self.vocabulary.detokenize(self.tokens[start : start + n]).strip()
            prompt = _prompt(text, planted)
            if (excess := self._length(prompt) - room) <= 0:
                return Buried(prompt, planted.answer)
            n -= excess
        raise MiniCacheError(
            f"a context of {n_ctx} has no room for what is hidden and asked; take a larger --ctx"
        )

    def _length(self, prompt: str) -> int:
        return len(self.vocabulary.begun(self.vocabulary.tokenize(prompt)))


def with_facts(text: str, facts: Sequence[tuple[float, str]]) -> str:
    """The text with each sentence at the boundary nearest to its depth, or right at it where there is no boundary."""
    boundaries = [0, *(match.end() for match in BOUNDARY.finditer(text)), len(text)]
    pieces, done = [], 0
    for depth, sentence in facts:
        wanted = round(depth * len(text))
        at = min(boundaries, key=lambda one: abs(one - wanted)) if len(boundaries) > 2 else wanted
        pieces += [text[done:at].rstrip(" "), sentence]
        done = at
    return " ".join(piece for piece in [*pieces, text[done:]] if piece)


def _prompt(text: str, planted: Planted) -> str:
    return f"{planted.opening}{with_facts(text, planted.facts)}\n\n{planted.question}"

"""Puts texts to a model with one cache, or only measures how long a context they need."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ...reading.text_model import TextModel
from ...text.vocabulary import Vocabulary


class ModelReader:
    """A kind.Reader on a TextModel, which reads prompts as chat does, many tokens at a time."""

    def __init__(self, model: TextModel) -> None:
        self.model, self.template = model, model.template

    def likelihoods(self, endings: Sequence[tuple[str, str]]) -> list[float]:
        split = [tokens_of(self.model.vocabulary, before, ending) for before, ending in endings]
        return [self.model.score(before, tokens)[0] for before, tokens in split]

    def complete(self, prompt: str, n_most: int, stops: Sequence[str] = ()) -> str:
        vocabulary = self.model.vocabulary
        return self.model.generate(vocabulary.begun(vocabulary.tokenize(prompt)), n_most, stops)


class Measure:
    """A kind.Reader without weights, which keeps the largest context, in tokens, that was needed."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.template = vocabulary, vocabulary.chat_template()
        self.n_ctx = 0

    def likelihoods(self, endings: Sequence[tuple[str, str]]) -> list[float]:
        for ending in endings:
            self.n_ctx = max(self.n_ctx, sum(map(len, tokens_of(self.vocabulary, *ending))))
        return [0.0] * len(endings)

    def complete(self, prompt: str, n_most: int, stops: Sequence[str] = ()) -> str:
        self.n_ctx = max(self.n_ctx, len(self.vocabulary.begun(self.vocabulary.tokenize(prompt))) + n_most)
        return ""


def tokens_of(vocabulary: Vocabulary, before: str, ending: str) -> tuple[list[int], list[int]]:
    """The tokens of a text and of its ending, which begins where the tokens of the whole depart from the text's own."""
    whole = vocabulary.begun(vocabulary.tokenize(before + ending))
    begun = vocabulary.begun(vocabulary.tokenize(before))
    n_before = len(os.path.commonprefix([begun, whole]))  # noqa: RUF071  (element by element is what is wanted)
    return whole[:n_before], whole[n_before:]

"""A model that scores texts and generates answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import CacheSpec, MiniCacheError
from minicache_cpp.reading.text_model import TextModel
from support import contexts, tiny_models


@pytest.fixture
def asked(model: Path) -> Iterator[TextModel]:
    with TextModel(model, CacheSpec.parse("f16"), 256, ubatch=16, threads=1) as text_model:
        yield text_model


def log_probabilities(model: Path, tokens: list[int]) -> Any:
    with contexts.Context(contexts.Model(model), n_ctx=256, n_ubatch=16) as context:
        logits = context.decode(contexts.run(tokens)).astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_scores_are_the_likelihoods_of_a_plain_context(asked: TextModel, model: Path) -> None:
    before, tokens = tiny_models.prompt(30), tiny_models.prompt(25, seed=1)
    logs = log_probabilities(model, before + tokens)
    expected = logs[np.arange(29, 54), tokens].sum()
    for _ in range(2):  # the second time, the context still holds the text
        assert asked.score(before, tokens)[0] == pytest.approx(expected, abs=1e-3)
    assert asked.score(before[:7], before[7:])[0] == pytest.approx(
        logs[np.arange(6, 29), before[7:]].sum(), abs=1e-3
    )


def test_greedy_answers_are_those_that_generation_gives(asked: TextModel, model: Path) -> None:
    prompt = tiny_models.prompt(40)
    answer: list[int] = []
    for _ in range(11):
        answer.append(int(log_probabilities(model, prompt + answer)[-1].argmax()))
    assert asked.generate(prompt, 11) == asked.vocabulary.detokenize(answer)
    assert asked.score(prompt, answer)[1]
    assert not asked.score(prompt, [*answer[:-1], answer[-1] ^ 1])[1]


def test_generation_ends_at_a_stop(asked: TextModel) -> None:
    prompt = tiny_models.prompt(40)
    text = asked.generate(prompt, 20)
    stop = text[3:5]
    assert asked.generate(prompt, 20, ["never there", stop]) == text[: text.find(stop)]


def test_long_texts_lose_their_beginning(asked: TextModel) -> None:
    tokens = tiny_models.prompt(400)
    assert asked.score(tokens[:-3], tokens[-3:])[0] == asked.score(tokens[-257:-3], tokens[-3:])[0]
    assert asked.generate(tokens, 20) == asked.generate(tokens[-236:], 20)
    with pytest.raises(MiniCacheError, match="make it larger"):
        asked.score(tokens[:1], tokens)


def test_a_context_is_read_in_whole_whatever_was_held(model: Path) -> None:
    # several answers share the context of their question; another question that begins alike is read from the start
    before, tokens = tiny_models.prompt(60), tiny_models.prompt(5, seed=1)
    with TextModel(model, CacheSpec.parse("slerp"), 256, ubatch=16, threads=1) as fresh:
        expected = fresh.score(before, tokens)
    with TextModel(model, CacheSpec.parse("slerp"), 256, ubatch=16, threads=1) as used:
        used.score(before[:25], tokens)
        for _ in range(2):
            assert used.score(before, tokens) == expected
            used.score(before, tiny_models.prompt(12, seed=2))

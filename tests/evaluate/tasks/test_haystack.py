"""Texts with hidden sentences: how long they are, and where the sentences stand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.evaluate.tasks.haystack import Haystack, with_facts
from minicache_cpp.evaluate.tasks.retrieval import Planted, n_most
from minicache_cpp.text.vocabulary import Vocabulary

PROSE = "It rained. Nobody came! Why? The road was long and it was late. "
NEEDLE = Planted(((0.5, "The key is 42."),), "The key is", "42", "Read.\n\n")


def test_a_fact_stands_at_the_boundary_nearest_to_its_depth() -> None:
    text = "Aaaa. Bbbb. Cccc. Dddd."
    assert with_facts(text, [(0, "X.")]) == "X. Aaaa. Bbbb. Cccc. Dddd."
    assert with_facts(text, [(0.45, "X.")]) == "Aaaa. Bbbb. X. Cccc. Dddd."
    assert with_facts(text, [(1, "X.")]) == "Aaaa. Bbbb. Cccc. Dddd. X."
    assert with_facts(text, [(0.2, "X."), (0.3, "Y."), (0.8, "Z.")]) == "Aaaa. X. Y. Bbbb. Cccc. Z. Dddd."


def test_a_text_without_boundaries_is_cut_where_the_fact_belongs() -> None:
    assert with_facts("abcdefghij", [(0.3, "X.")]) == "abc X. defghij"


@pytest.mark.parametrize("n_ctx", [128, 500])
@pytest.mark.parametrize("depth", [0.1, 0.9])
def test_prompt_and_answer_fill_the_context(model: Path, n_ctx: int, depth: float) -> None:
    planted = Planted(((depth, "The key is 42."),), "The key is", "42", "Read.\n\n")
    with Vocabulary(model) as vocabulary:
        haystack = Haystack(vocabulary, PROSE * 40)
        item = haystack.bury(planted, n_ctx, random.Random(1))
        n = len(vocabulary.begun(vocabulary.tokenize(item.prompt))) + n_most(item.answer)
    assert n_ctx - 16 <= n <= n_ctx
    assert item.prompt.startswith("Read.\n\n") and item.prompt.endswith("\n\nThe key is")
    assert item.answer == "42"
    hidden = item.prompt.removeprefix("Read.\n\n").removesuffix("\n\nThe key is")
    at = hidden.index("The key is 42.") / (len(hidden) - len("The key is 42."))
    # a sentence has 34 letters at most, and the boundary is half of one away
    assert abs(at - depth) < 20 / len(hidden) + 0.01


def test_each_item_gets_another_part_of_the_text(model: Path) -> None:
    rng = random.Random(1)
    with Vocabulary(model) as vocabulary:
        haystack = Haystack(vocabulary, "".join(f"Line {number}. " for number in range(500)))
        prompts = {haystack.bury(NEEDLE, 200, rng).prompt for _ in range(4)}
    assert len(prompts) == 4


def test_a_text_or_a_context_that_is_too_small_is_refused(model: Path) -> None:
    with Vocabulary(model) as vocabulary:
        haystack = Haystack(vocabulary, PROSE)
        with pytest.raises(
            MiniCacheError, match=r"at a context of 500 needs \d+ tokens of text, and there are 6\d;"
        ):
            haystack.bury(NEEDLE, 500, random.Random(1))
        with pytest.raises(MiniCacheError, match="a context of 30 has no room"):
            haystack.bury(NEEDLE, 30, random.Random(1))

"""A context that returns to a mark after each question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import CacheSpec
from minicache_cpp.native.binding import llama_h
from minicache_cpp.reading.model import NativeModel
from minicache_cpp.reading.scored_context import ScoredContext
from support import tiny_models


@pytest.mark.parametrize("spec", ["q8_0", "slerp:start=0"])
def test_a_context_forgets_each_question_before_the_next(model: Path, spec: str) -> None:
    told, asked = tiny_models.prompt(70), tiny_models.prompt(20, seed=5)

    def answer(context: ScoredContext) -> Any:
        return np.concatenate([logits.copy() for _, logits in context.decode(asked, 100, 0)])

    with (
        NativeModel(model) as loaded,
        ScoredContext(loaded, CacheSpec.parse(spec), 256, 16, 1) as context,
    ):
        context.read(told, 30)
        context.mark()
        first = answer(context)
        for _ in range(3):
            context.back()
            assert llama_h.llama_memory_seq_pos_max(context.memory, 0) == 99
            context.likeliest(tiny_models.prompt(40, seed=6), 100, 1)  # another question
            context.back()
            assert np.array_equal(answer(context), first)

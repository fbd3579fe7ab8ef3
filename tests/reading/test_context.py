"""Contexts that are filled with copies of the tokens they have read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import CacheSpec
from minicache_cpp.native.binding import llama_h
from minicache_cpp.reading.context import SequenceContext
from minicache_cpp.reading.model import NativeModel
from support import tiny_models


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a single layer, K and V depend only on a token and its position."""
    path = tmp_path_factory.mktemp("models") / "one.gguf"
    return tiny_models.random_model(n_layer=1).write(path)


def logits(context: SequenceContext) -> np.ndarray:  # type: ignore[type-arg]
    return np.ctypeslib.as_array(llama_h.llama_get_logits(context.ctx), (context.n_vocab,)).copy()


# turned to its new position, K is rounded by 1/2048 in f16, and by 1/254 of the largest number in q8_0
@pytest.mark.parametrize(("cache", "bound"), [("f16", 2e-3), ("q8_0", 2e-2)])
@pytest.mark.parametrize("n_kv", [2 * tiny_models.N_VOCAB, 2 * tiny_models.N_VOCAB + 100])
def test_copies_match_a_prompt_that_repeats_itself(
    one_layer: Path, cache: str, bound: float, n_kv: int
) -> None:
    period = tiny_models.N_VOCAB  # evaluate() repeats its tokens after this many
    found = []
    with NativeModel(one_layer) as model:
        for copies in (False, True):
            context = SequenceContext(model, CacheSpec.parse(cache), n_kv + 1, 1024, 1, copies)
            try:
                context.evaluate(0, period if copies else n_kv)
                if copies:
                    before = logits(context)
                    context.fill_by_copies(period, n_kv)
                    assert llama_h.llama_memory_seq_pos_max(context.memory, 0) == n_kv - 1
                    assert llama_h.llama_memory_seq_pos_max(context.memory, 1) == -1
                context.evaluate(n_kv, 1)
                found.append(logits(context))
            finally:
                context.close()
    expected, copied = found
    scale = np.linalg.norm(expected)
    assert np.linalg.norm(copied - expected) < bound * scale
    assert np.linalg.norm(before - expected) > 10 * bound * scale

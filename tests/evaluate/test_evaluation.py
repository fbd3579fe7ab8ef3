"""The chunks of an evaluation, and positions beyond what a model has."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.evaluate import evaluation, material
from minicache_cpp.evaluate.settings import Settings
from minicache_cpp.modelfile.gguf_file import read_gguf


def test_chunks_are_spread_over_the_text() -> None:
    assert material.spread(list(range(10)), 3, 3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert material.spread(list(range(100)), 10, 2) == [list(range(10)), list(range(90, 100))]
    assert material.spread(list(range(9)), 9, 1) == [list(range(9))]


def test_chunks_begin_as_the_model_wants_it(model: Path, text: Path) -> None:
    settings = Settings([50], [0], [])
    chunks = material.prepare(model, text.read_text(), settings).chunks[50]
    assert [len(chunk) for chunk in chunks] == [50] * 4
    assert [chunk[0] for chunk in chunks] == [1] * 4  # <s>
    assert all(1 not in chunk[1:] for chunk in chunks)


def test_positions_that_a_model_lacks_are_refused(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    file = read_gguf(model)
    monkeypatch.setattr(evaluation, "LEARNED_POSITIONS", (file.architecture,))
    with pytest.raises(MiniCacheError, match="has 4096 positions"):
        evaluation.check_positions(file, Settings([64], [4090], []))

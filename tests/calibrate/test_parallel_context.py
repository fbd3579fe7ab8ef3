"""Several texts read side by side give the logits that each of them gives alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import CacheSpec
from minicache_cpp.calibrate.material import Chunk
from minicache_cpp.calibrate.parallel_context import ParallelContext
from minicache_cpp.reading.model import NativeModel
from support import tiny_models


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_reading_the_window_at_once_gives_the_same_logits(models: dict[str, Path], kind: str) -> None:
    """Several tokens of each text in a step give what one in a step gives, up to rounding, though lengths differ."""
    prompts = [tiny_models.prompt(60 + 7 * seed, seed=seed) for seed in range(3)]
    read: list[dict[tuple[int, int], Any]] = []
    for window in (0, 30):
        chunks = [Chunk(prompt, 100 * i, window) for i, prompt in enumerate(prompts)]
        with (
            NativeModel(models["plain"]) as model,
            ParallelContext(model, CacheSpec(kind, kind), chunks, 1) as context,
        ):
            seen = [(numbers, at, logits.copy()) for numbers, at, logits in context.read()]
        assert [at for _, at, _ in seen] == sorted({at for _, at, _ in seen})
        read.append(
            {
                (number, at): row
                for numbers, at, logits in seen
                for number, row in zip(numbers, logits, strict=True)
            }
        )
        wanted = {(i, at) for i, chunk in enumerate(chunks) for at in range(chunk.first, len(chunk.tokens))}
        assert set(read[-1]) == wanted
    for place, logits in read[1].items():
        np.testing.assert_allclose(logits, read[0][place], atol=2e-2)

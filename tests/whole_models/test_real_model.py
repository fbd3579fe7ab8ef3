"""smollm2-135m with the plan that ships: what it loses, what it finds far back, and what shifts do to it.

The bounds have room for the rounding of other machines; docs/results.md has the figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minicache_cpp import MiniCache, cli
from minicache_cpp.reading.divergence import kl_divergence, log_probabilities
from minicache_cpp.text import bundled
from minicache_cpp.text.files import read_texts
from minicache_cpp.text.vocabulary import Vocabulary
from support.contexts import Context, Model, run


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert cli.main(["evaluate", *map(str, arguments), "--threads", "1", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_loses_a_fraction_of_q4_0_in_fewer_bytes(
    smollm2: Path, smollm2_plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specs = ("--config", "q4_0", "--config", smollm2_plan)
    rows = evaluated(capsys, smollm2, "--ctx", 512, "--chunks", 1, *specs)["rows"]
    _, q4_0, coded = rows
    assert coded["bytes_per_token"] < 0.75 * q4_0["bytes_per_token"]
    assert 0 < coded["kl_excess"] < 0.4 * q4_0["kl_excess"]
    assert coded["kl_mean"] < 0.025
    assert coded["top1"] > 0.87


def test_a_plan_finds_what_f16_finds_far_back(
    smollm2: Path, smollm2_plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--retrieve", "needle", "--ctx", 512, "--depth", "0.1,0.6", "--task-limit", 4)
    rows = evaluated(capsys, smollm2, *where, "--config", smollm2_plan)["rows"]
    right = {"f16": 0.0, str(smollm2_plan): 0.0}
    for row in rows:
        right[row["name"]] += row["asked"] * row["metrics"]["acc"]["score"]
    assert right["f16"] >= 6  # of 8: otherwise the question would say nothing about caches
    assert right[str(smollm2_plan)] >= right["f16"] - 1


N_CTX, N_UBATCH, N_KEPT, N_TOKENS = 256, 32, 4, 2048
# ubatches before the first shift, and after the last of some 15
EARLY, LATE = range(2, 8), range(56, 64)


def read_with_shifts(model: Model, cache: MiniCache | None, tokens: list[int]) -> Iterator[npt.NDArray[Any]]:
    """Logits after each token, ubatch by ubatch; a full context loses the older half of its tokens."""
    with Context(model, cache, n_ctx=N_CTX, n_ubatch=N_UBATCH) as context:
        position = 0
        for first in range(0, len(tokens), N_UBATCH):
            part = tokens[first : first + N_UBATCH]
            if position + len(part) > N_CTX:
                n_dropped = (position - N_KEPT) // 2
                assert context.seq_rm(0, N_KEPT, N_KEPT + n_dropped)
                context.seq_add(0, N_KEPT + n_dropped, position, -n_dropped)
                position -= n_dropped
            yield context.decode(run(part, position))
            position += len(part)


def test_the_loss_does_not_grow_over_thousands_of_shifted_tokens(smollm2: Path, smollm2_plan: Path) -> None:
    with Vocabulary(smollm2) as vocabulary:
        tokens = vocabulary.tokenize(read_texts(bundled.evaluation_files()))[:N_TOKENS]
    model = Model(smollm2)
    try:
        f16, coded = (
            {
                n: log_probabilities(logits)
                for n, logits in enumerate(read_with_shifts(model, cache, tokens))
                if n in (*EARLY, *LATE)
            }
            for cache in (None, MiniCache(plan=smollm2_plan))
        )
    finally:
        model.close()
    early, late = (np.mean([kl_divergence(f16[n], coded[n]) for n in part]) for part in (EARLY, LATE))
    assert 0 < early < 0.03
    assert late < 2 * early + 0.01, (early, late)

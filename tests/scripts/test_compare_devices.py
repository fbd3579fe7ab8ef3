"""scripts/compare_devices.py: when the logits of two devices count as the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import compare_devices
from minicache_cpp import CacheSpec
from minicache_cpp.native import devices

SPECS = ("f16", "slerp:type=q4_0")


def test_devices_are_compared(random_gguf: Path) -> None:
    specs = [CacheSpec.parse(text) for text in SPECS]
    for row in compare_devices.compare(random_gguf, specs, gpu_layers=0):
        assert (row["prompt"], row["decode"], row["same"], row["fallback"]) == (0.0, 0.0, True, "")
        assert (row["cost_decode"] > 0) == (row["cache"] != "f16")


@pytest.mark.parametrize(
    ("changes", "plain", "expected"),
    [
        ({}, 0.0, True),
        ({"decode": 9e-4}, 0.0, True),
        ({"decode": 2e-3}, 0.0, False),
        ({"decode": 2e-3}, 7e-4, True),
        ({"decode": 2e-3, "cost_decode": 1e-2}, 0.0, True),
        ({"decode": 2e-3, "cost_prompt": 1e-2}, 0.0, False),
        ({"prompt": float("nan")}, 0.0, False),
        ({"same": False}, 0.0, False),
    ],
)
def test_what_counts_as_the_same_logits(changes: dict[str, float], plain: float, expected: bool) -> None:
    row = {"prompt": 0.0, "decode": 0.0, "cost_prompt": 0.0, "cost_decode": 0.0, "same": True, **changes}
    assert compare_devices.agrees(row, plain) is expected


def test_nmse() -> None:
    assert compare_devices.nmse(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx(0.2)


@pytest.mark.skipif(not devices.gpus(), reason="needs a GPU")
def test_gpu_gives_the_same_logits() -> None:
    assert compare_devices.main([]) == 0

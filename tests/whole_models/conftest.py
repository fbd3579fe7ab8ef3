"""What the tests of whole models share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cuda_on_cpu import Devices, devices


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Where a test writes its plan."""
    return tmp_path / "plan.gguf"


@pytest.fixture
def device() -> Iterator[Devices]:
    """A device that runs the CUDA kernels on the CPU."""
    with devices() as found:
        yield found

"""What the tests of whole models share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.cuda_on_cpu import Devices, devices
from support.family_caches import LoadedFamily


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Where a test writes its plan."""
    return tmp_path / "plan.gguf"


@pytest.fixture
def device() -> Iterator[Devices]:
    """A device that runs the CUDA kernels on the CPU."""
    with devices() as found:
        yield found


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LoadedFamily]]:
    """Makes and loads each family once."""
    folder, made = tmp_path_factory.mktemp("families"), dict[str, LoadedFamily]()

    def load(name: str) -> LoadedFamily:
        if name not in made:
            made[name] = LoadedFamily(name, folder / f"{name}.gguf")
        return made[name]

    yield load
    for one in made.values():
        one.model.close()

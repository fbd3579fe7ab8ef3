"""The paths of the tiny models' files, as `Llama` takes them."""

from __future__ import annotations

import pytest

from support.loaded import Loaded


@pytest.fixture(scope="session")
def path(random_model: Loaded) -> str:
    return str(random_model.path)


@pytest.fixture(scope="session")
def parallel_path(parallel_model: Loaded) -> str:
    return str(parallel_model.path)

"""Random models and plans, written by the scripts that make them."""

from __future__ import annotations

from pathlib import Path

import pytest

import random_model
import random_plan


@pytest.fixture(scope="session")
def random_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "tiny.gguf"
    assert random_model.main(["tiny", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "tiny.gguf"
    assert random_model.main(["tiny", "--layers", "4", "--vocab", "96", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def plans(small_gguf: Path) -> dict[str, Path]:
    found = {}
    for name, options in (
        ("5", ["--ratio", "5"]),
        ("8", ["--ratio", "8"]),
        ("plain", ["--plain", "q4_0"]),
        ("four", ["--ratio", "5", "--group", "4"]),
    ):
        found[name] = small_gguf.with_name(f"{name}.plan.gguf")
        assert random_plan.main([str(small_gguf), *options, "-o", str(found[name])]) == 0
    return found

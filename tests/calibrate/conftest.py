"""Models, a text and a plan that the tests of calibration share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support import tiny_models
from support.calibrations import made, write_sentences
from support.family_models import FAMILIES


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": tiny_models.random_model(n_layer=4).write(folder / "plain.gguf"),
        "odd": tiny_models.random_model(n_layer=3, arch="qwen2").write(folder / "odd.gguf"),
        "alibi": tiny_models.random_model(n_layer=2, arch="refact").write(folder / "alibi.gguf"),
        "window": FAMILIES["gemma2"].write(folder / "window.gguf"),
    }


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="session")
def found(models: dict[str, Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(models["plain"], text, tmp_path_factory.mktemp("plans") / "plan.gguf")

"""An index of wheels made here, and a user's cache directory of each test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minicache_cpp.models import table
from support.model_packages import Index


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache directory, which does not exist yet."""
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The only index of pip, and the only table of models."""
    found = Index(tmp_path / "wheels", tmp_path / "data")
    found.wheels.mkdir()
    found.data.mkdir()
    found.write_table()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(found.wheels))
    monkeypatch.setattr(table, "data_folder", lambda: found.data)
    return found

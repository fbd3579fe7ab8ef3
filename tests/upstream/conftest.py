"""A small upstream to be patched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from support.small_upstream import Upstream


@pytest.fixture(params=["alone", "inside a repository"])
def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> Upstream:
    # inside another repository, git takes paths to be relative to that repository's root
    if request.param == "inside a repository":
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    directory = tmp_path / "build"
    directory.mkdir()
    return Upstream(directory)

"""scripts/bootstrap.py: its help, and its message where tools are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

BOOTSTRAP = ROOT / "scripts" / "bootstrap.py"


@pytest.mark.parametrize("arguments", [[], ["setup"], ["chat"], ["test"], ["bench"]])
def test_bootstrap_help(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, BOOTSTRAP, *arguments, "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "python3 scripts/bootstrap.py" in result.stdout


def test_bootstrap_names_missing_tools(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, BOOTSTRAP, "setup"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "not found: cmake, git, a C++ compiler" in result.stderr
    assert "apt-get install" in result.stderr

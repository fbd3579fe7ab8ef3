"""Frozen apps: PyInstaller finds the hook by the package's entry point, and the hook names what there is."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.paths import ROOT


def hook_directory() -> Path:
    """Where the entry point in pyproject.toml sends PyInstaller."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    point = re.search(
        r'^hook-dirs = "([\w.]+):(\w+)"$', text.split("entry-points.pyinstaller40]")[1], re.MULTILINE
    )
    assert point
    (directory,) = getattr(import_module(point[1]), point[2])()
    return Path(directory)


def test_the_hook_collects_libraries_data_versions_and_late_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def remembering(kind: str) -> Any:
        def collect(package: str) -> list[str]:
            asked.append((kind, package))
            return [f"{kind} of {package}"]

        return collect

    hooks = ModuleType("PyInstaller.utils.hooks")
    for kind in ("collect_data_files", "collect_dynamic_libs", "collect_submodules", "copy_metadata"):
        setattr(hooks, kind, remembering(kind))
    for name in ("PyInstaller", "PyInstaller.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "PyInstaller.utils.hooks", hooks)
    found: dict[str, Any] = {}
    exec((hook_directory() / "hook-minicache_cpp.py").read_text(), found)
    assert found["binaries"] == ["collect_dynamic_libs of minicache_cpp"]
    assert found["hiddenimports"] == ["collect_submodules of minicache_cpp"]
    assert ("copy_metadata", "llama-cpp-python") in asked
    assert len(found["datas"]) == 3

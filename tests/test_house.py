"""How the project keeps house: what may import what, and how long things may be."""

from __future__ import annotations

import ast
from pathlib import Path

from support.paths import ROOT

TESTS = ROOT / "tests"


def imported(path: Path) -> set[str]:
    """The last names of the modules that a file imports, and of what it imports from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.name.rpartition(".")[2] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.rpartition(".")[2])
    return names


def test_no_file_imports_from_a_test_file() -> None:
    """What several files need lies in tests/support."""
    files = sorted(TESTS.rglob("*.py"))
    test_files = {path.stem for path in files if path.stem.startswith("test_")} | {"conftest"}
    wrong = {str(path.relative_to(TESTS)): found for path in files if (found := imported(path) & test_files)}
    assert wrong == {}

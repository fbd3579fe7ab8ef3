"""Rules for the files of the project: what tests may import, how long modules and functions may be, and what prints."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.paths import ROOT

TESTS = ROOT / "tests"
PACKAGE = ROOT / "python" / "minicache_cpp"

MODULE_LINES = 350
FUNCTION_LINES = 60  # from the first decorator to the last line, docstring included

# Modules ("cache/size.py") and functions ("cache/size.py: kv_bytes") that are longer, each with the reason.
LONGER: dict[str, str] = {}


def imported_names(path: Path) -> set[str]:
    """The last parts of the names of the modules that a file imports, and the names that it imports from them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.name.rpartition(".")[2] for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.rpartition(".")[2])
    return names


def functions(node: ast.AST, owner: str = "") -> Iterator[tuple[str, int]]:
    """The qualified name and the number of lines of each function below a node."""
    for child in ast.iter_child_nodes(node):
        name = owner
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{owner}.{child.name}" if owner else child.name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min(part.lineno for part in (child, *child.decorator_list))
            yield name, (child.end_lineno or child.lineno) - first + 1
        yield from functions(child, name)


def too_long() -> dict[str, int]:
    """The modules and functions of the package that are over the limits, and how many lines they have."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name, text = path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")
        if (n_lines := len(text.splitlines())) > MODULE_LINES:
            found[name] = n_lines
        for function, n_lines in functions(ast.parse(text)):
            if n_lines > FUNCTION_LINES:
                found[f"{name}: {function}"] = n_lines
    return found


def test_no_file_imports_from_a_test_file() -> None:
    """What several test files need belongs in tests/support, and fixtures in a conftest.py."""
    files = sorted(TESTS.rglob("*.py"))
    test_files = {path.stem for path in files if path.stem.startswith("test_")} | {"conftest"}
    wrong = {
        str(path.relative_to(TESTS)): found for path in files if (found := imported_names(path) & test_files)
    }
    assert wrong == {}


def test_modules_and_functions_are_short() -> None:
    assert {name: n for name, n in too_long().items() if name not in LONGER} == {}


def test_every_exception_is_still_needed() -> None:
    assert set(LONGER) - set(too_long()) == set()


def test_the_tests_that_reliability_names_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)
    assert len(named) > 40
    assert [name for path, name in named if f"def {name}(" not in (ROOT / path).read_text("utf-8")] == []


def test_what_is_printed_goes_through_one_module() -> None:
    """show() and tell() know what to do where a stream is full, closed or of another encoding; print() does not."""
    found = [
        f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "host" / "output.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []

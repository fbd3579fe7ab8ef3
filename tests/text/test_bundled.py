"""The texts in the package: calibration uses some and evaluation the others, so they share nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.text import bundled, files

WORDS = 6  # in a row; ChatML's marks and tables of numbers share fewer


def word_runs(path: Path) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", path.read_text(encoding="utf-8").lower())
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def sentences(path: Path) -> set[str]:
    parts = re.split(r"(?<=[.!?:;])\s+|\n+", path.read_text(encoding="utf-8"))
    return {part.strip().lower() for part in parts if len(part.strip()) > 24}


@pytest.mark.parametrize("units", [word_runs, sentences])
def test_calibration_and_evaluation_share_nothing(units) -> None:  # type: ignore[no-untyped-def]
    fitted, judged = (
        set().union(*map(units, paths)) for paths in (bundled.calibration_files(), bundled.evaluation_files())
    )
    assert len(fitted) > 500 and len(judged) > 300  # otherwise sharing nothing would say little
    assert fitted & judged == set()


def test_both_sets_are_large_enough_and_varied() -> None:
    for paths, count, least in (
        (bundled.calibration_files(), 40, 240_000),
        (bundled.evaluation_files(), 9, 22_000),
    ):
        assert len(paths) >= count
        assert sum(path.stat().st_size for path in paths) >= least


def test_texts_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("Käse", encoding="utf-8")
    (tmp_path / "b").write_text("Brot", encoding="utf-8")
    assert files.read_texts([tmp_path / "a", tmp_path / "b"]) == "Käse\n\nBrot"


def test_of_a_very_long_text_the_beginning_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 20)
    (tmp_path / "lines").write_text("first line\nsecond line\nthird", encoding="utf-8")
    assert files.read_texts([tmp_path / "lines"]) == "first line"
    (tmp_path / "one").write_text("ü" * 30, encoding="utf-8")
    assert set(files.read_texts([tmp_path / "one"])) == {"ü"}


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), (b"\xff\xfe\x00", "not UTF-8"), ("folder", "is a directory")],
)
def test_files_without_text_are_refused(tmp_path: Path, content: bytes | str | None, words: str) -> None:
    path = tmp_path / "text"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(MiniCacheError, match=words):
        files.read_texts([path])

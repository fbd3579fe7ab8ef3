"""Paths that people give: ~ in them, and names that are not UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.cli import main
from minicache_cpp.host.paths import name_shown, user_path
from minicache_cpp.host.user_cache import cache_dir


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def test_a_tilde_at_the_beginning_is_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, meant in (
        ("~", home),
        ("~/m.gguf", home / "m.gguf"),
        (Path("~/a/m.gguf"), home / "a" / "m.gguf"),
        ("a/~/m.gguf", Path("a/~/m.gguf")),
        ("m~.gguf", Path("m~.gguf")),
        # a shell leaves it alone too
        ("~draft.gguf", Path("~draft.gguf")),
    ):
        assert user_path(path) == meant
    monkeypatch.setenv("MINICACHE_CACHE_DIR", "~/cache")
    assert cache_dir() == home / "cache"


@pytest.mark.skipif(os.name == "nt", reason="Windows looks for any user's folder beside one's own")
def test_a_home_folder_that_is_not_known_is_refused() -> None:
    with pytest.raises(
        MiniCacheError, match=r"~nobody-of-this-name/m\.gguf names a home folder that is not known"
    ):
        user_path("~nobody-of-this-name/m.gguf")


def test_a_name_that_is_not_utf_8_is_shown_as_text() -> None:
    assert name_shown("folder/\udcffé.gguf") == "?é.gguf"


@pytest.mark.parametrize(
    "given",
    [
        ["calibrate", "model.gguf", "-o", ""],
        ["calibrate", "model.gguf", "--text", ""],
        ["evaluate", "model.gguf", "--text", ""],
        ["evaluate", "model.gguf", "--plot", ""],
        ["evaluate", "model.gguf", "--task", "tasks.jsonl", ""],
        ["longbench", "model.gguf", "--task", "qasper", "--data", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_this_folder(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """As of a variable that is not set."""
    with pytest.raises(SystemExit, match="2"):
        main(given)
    assert "the path is empty; name a file or a folder" in capsys.readouterr().err.splitlines()[-1]

"""`minicache models`: the list, `path` and `rm`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicache_cpp import cli, list_models
from support.model_packages import Index


def test_the_list_says_what_is_there(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.add("tiny", [b"x" * 1000])
    index.add("large", [b"y" * 2000])
    path = cache / "models" / "tiny.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 1000)
    for arguments in (["models"], ["models", "list"]):
        assert cli.main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["name", "size", "context", "licence", "fetched"]
        assert [lines[1].split()[0], lines[1].split()[-1]] == ["tiny", "yes"]
        assert [lines[2].split()[0], lines[2].split()[-1]] == ["large", "no"]
        assert "CC0-1.0" in lines[1] and "4096" in lines[1]
        assert str(cache / "models") in lines[-1]
    assert cli.main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(cache / "models")
    assert [(one["name"], one["path"]) for one in found["models"]] == [("tiny", str(path)), ("large", None)]


def test_the_list_needs_no_folder(
    index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    index.add("tiny", [b"x" * 1000])
    for name in ("MINICACHE_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[1].split()[0], lines[1].split()[-1]] == ["tiny", "no"]
    assert lines[-1].startswith("None can be fetched: there is no home folder")
    assert lines[-1].endswith("name a folder with MINICACHE_CACHE_DIR.")
    assert cli.main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["folder"], found["models"][0]["path"]) == (None, None)
    assert [one.path for one in list_models()] == [None]
    # what needs the folder says so
    for action in ("get", "path", "rm"):
        assert cli.main(["models", action, "tiny"]) == 2
        assert "MINICACHE_CACHE_DIR" in capsys.readouterr().err


def test_path_and_rm(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.add("tiny", [b"x" * 1000])
    assert cli.main(["models", "path", "tiny"]) == 2
    assert "`minicache models get tiny` fetches it" in capsys.readouterr().err
    assert cli.main(["models", "get", "tiny"]) == 0
    capsys.readouterr()
    assert cli.main(["models", "path", "tiny"]) == 0
    assert capsys.readouterr().out == f"{cache / 'models' / 'tiny.gguf'}\n"
    # and what an unfinished fetch has left
    (cache / "models" / "tiny.fetch" / "tiny-part1").mkdir(parents=True)
    for words in ("tiny is removed", "tiny is not there"):
        assert cli.main(["models", "rm", "tiny"]) == 0
        assert words in capsys.readouterr().out
        assert list((cache / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["get"], "get needs a NAME"),
        (["rm"], "rm needs a NAME"),
        (["list", "tiny"], "list takes no NAME"),
        (["get", "huge"], "huge is not the name of a model; the names are tiny"),
    ],
)
def test_bad_input(
    index: Index, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    index.add("tiny", [b"x"])
    assert cli.main(["models", *arguments]) == 2
    assert words in capsys.readouterr().err

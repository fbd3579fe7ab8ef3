"""`minicache models`: the list, `path` and `rm`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicache_cpp import cli
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

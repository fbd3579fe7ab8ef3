"""A model's name where a MODEL is taken: by the commands, which fetch it, and by Llama, which does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicache_cpp import Llama, MiniCacheError, calibrate_model, cli
from minicache_cpp.models import requested, store
from minicache_cpp.models.requested import requested_model
from support.model_packages import Index


@pytest.fixture
def tiny(index: Index, model: Path) -> Path:
    """The file of a model that the table calls `tiny`, in two packages."""
    data = model.read_bytes()
    index.add("tiny", [data[:100_000], data[100_000:]])
    return model


def test_a_command_fetches_a_model_that_it_is_given_by_name(
    tiny: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", "tiny", "--json"]) == 0
    done = capsys.readouterr()
    found = json.loads(done.out)
    assert found["model"] == str(cache / "models" / "tiny.gguf")
    assert found["layers"] == 6
    assert "licence: CC0-1.0" in done.err
    # from then on it is there, and nothing is said
    assert cli.main(["inspect", "tiny", "--json"]) == 0
    done = capsys.readouterr()
    assert json.loads(done.out) == found
    assert done.err == ""


def test_llama_takes_a_name_when_the_model_is_there(tiny: Path, cache: Path) -> None:
    with pytest.raises(MiniCacheError, match="`minicache models get tiny` fetches it"):
        Llama("tiny", n_ctx=256, verbose=False)
    assert not cache.exists()
    path = requested_model("tiny")
    assert path.read_bytes() == tiny.read_bytes()
    with Llama("tiny", n_ctx=256, n_threads=1, verbose=False) as llm:
        assert llm.model_path == str(path)


@pytest.mark.parametrize("command", ["chat", "calibrate", "inspect", "evaluate", "bench"])
def test_without_a_model_the_demo_model_is_taken_and_not_fetched(
    index: Index, cache: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    index.add(store.DEMO, [b"no model"])
    assert cli.main([command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no MODEL is given" in line and f"`minicache models get {store.DEMO}`" in line
    assert not cache.exists()
    path = requested_model(store.DEMO)
    capsys.readouterr()
    assert requested_model(None) == path
    assert cli.main([command]) == 2
    assert f"{path} is not a GGUF file" in capsys.readouterr().err


def test_an_unknown_name(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    index.add("tiny", [b"x"])
    assert cli.main(["inspect", "tinny"]) == 2
    assert "tinny is neither a file nor the name of a model; the names are tiny" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["./tiny", "tiny.gguf", "folder/tiny", "file"])
def test_a_path_is_never_a_name(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for name in ("tiny", "tiny.gguf", "file"):
        index.add(name, [b"x"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requested, "model_path", None)
    Path("file").write_text("a file of this name comes before the model")
    # a folder of a model's name does not
    Path("tiny").mkdir()
    assert requested_model(text) == Path(text)
    assert store.file_of(text) == text
    assert not store.is_path("tiny")


def test_an_unknown_name_in_a_program(index: Index) -> None:
    index.add("tiny", [b"x"])
    for use in (store.file_of, Llama, calibrate_model):
        with pytest.raises(MiniCacheError, match=r"something is neither a file nor .* the names are tiny"):
            use("something")

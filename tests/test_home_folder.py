"""~ at the beginning of a path that no shell has expanded, wherever a file is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import (
    CacheSpec,
    Conversation,
    Llama,
    MiniCache,
    MiniCacheError,
    calibrate_model,
    cli,
    load_chat,
    save_chat,
)
from oracle.model import Config
from support.loaded import Loaded
from support.plans import ALL_PAIRS, coded

SMALL: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "verbose": False}


@pytest.fixture
def home(random_model: Loaded, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a model, a plan of it and a text; the current folder is another one."""
    (tmp_path / "m.gguf").symlink_to(random_model.path)
    (tmp_path / "t.txt").symlink_to(text)
    coded(random_model, Config(ALL_PAIRS, window=16), tmp_path / "plan")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    return tmp_path


def test_in_programs(home: Path) -> None:
    for model in ("~/m.gguf", Path("~/m.gguf")):
        for minicache in ("~/plan", Path("~/plan"), MiniCache(plan="~/plan"), CacheSpec.parse("~/plan")):
            with Llama(model, minicache=minicache, **SMALL) as llm:
                assert (llm.model_path, llm.cache_spec.name) == (str(home / "m.gguf"), str(home / "plan"))
    with Llama("~/m.gguf", **SMALL) as llm:
        chat = Conversation(llm)
        chat.ask("hi", 2)
        save_chat("~/chat", chat)
        load_chat(Path("~/chat"), chat)
    made = calibrate_model("~/m.gguf", "~/made", texts=("~/t.txt",), tokens=256, window=16, threads=1)
    assert made["plan"] == str(home / "made")
    assert all((home / name).is_file() for name in ("chat", "made"))
    assert list((home / "here").iterdir()) == []
    with pytest.raises(
        MiniCacheError, match=r"~nobody-of-this-name/m\.gguf names a home folder that is not known"
    ):
        Llama("~nobody-of-this-name/m.gguf", **SMALL)


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (["inspect", "~/m.gguf", "--config", "~/plan"], ""),
        (
            ["calibrate", "~/m.gguf", "--text", "~/t.txt", "--tokens", "256", "--window", "16", "-o", "~/p"],
            "p",
        ),
        (
            [
                "evaluate",
                "~/m.gguf",
                "--text",
                "~/t.txt",
                "--ctx",
                "16",
                "--chunks",
                "1",
                "--plot",
                "~/p.svg",
            ],
            "p.svg",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_on_the_command_line(
    home: Path, words: list[str], made: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--plot" in words:
        pytest.importorskip("matplotlib")
    threads = [] if words[0] == "inspect" else ["--threads", "1"]
    assert cli.main([*words, *threads]) == 0
    assert (home / made).exists()
    assert list((home / "here").iterdir()) == []
    capsys.readouterr()
    unknown = ["~nobody-of-this-name/x" if word.startswith("~") else word for word in words]
    assert cli.main([*unknown, *threads]) == 2
    assert capsys.readouterr().err == (
        "minicache: ~nobody-of-this-name/x names a home folder that is not known; write the path in full\n"
    )

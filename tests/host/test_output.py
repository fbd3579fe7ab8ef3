"""What commands print where stdout or stderr is full, closed, left by its reader, or of a poor encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FULL = Path("/dev/full")
ON_FULL_DISKS = pytest.mark.skipif(not FULL.exists(), reason="only Linux has a device that is always full")
LOST = ["minicache: the output cannot be written: No space left on device"]

COMMANDS = {
    "help": ["--help"],
    "help of a command": ["bench", "--help"],
    "version": ["--version"],
    "models": ["models"],
    "inspect": ["inspect", "{model}", "--json"],
    "chat": ["chat", "{model}", "--prompt", "hi", "--max-tokens", "2", "--threads", "1"],
    "evaluate": ["evaluate", "{model}", "--text", "{text}", "--ctx", "16", "--chunks", "1", "--threads", "1",
                 "--config", "q8_0"],
    "calibrate": ["calibrate", "{model}", "--text", "{text}", "--tokens", "256", "--window", "16", "--threads", "1",
                  "-o", "{plan}"],
}  # fmt: skip


def run(
    words: list[str], *, env: dict[str, str] | None = None, **streams: Any
) -> tuple[int, list[str], bytes]:
    """Runs `minicache`: its exit code, the lines on stderr that begin with its name or tell of faults, and stdout."""
    command = [sys.executable, "-m", "minicache_cpp", *words]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    done = subprocess.run(command, timeout=120, check=False, env=os.environ | (env or {}), **streams)
    lines = (done.stderr or b"").decode("utf-8", "replace").splitlines()
    words_of_faults = ("minicache: ", "Traceback", "Exception ignored")
    return done.returncode, [line for line in lines if line.startswith(words_of_faults)], done.stdout or b""


@pytest.fixture
def words(model: Path, text: Path, tmp_path: Path, request: pytest.FixtureRequest) -> list[str]:
    places = {"{model}": model, "{text}": text, "{plan}": tmp_path / "plan.gguf"}
    return [str(places.get(word, word)) for word in COMMANDS[request.param]]


@ON_FULL_DISKS
@pytest.mark.parametrize("words", COMMANDS, indirect=True)
def test_an_answer_that_cannot_be_written_is_one_line_and_exit_code_2(words: list[str]) -> None:
    with FULL.open("wb") as full:
        assert run(words, stdout=full)[:2] == (2, LOST)
        if words[0] in ("models", "inspect"):
            assert run(words, stdout=full, env={"PYTHONUNBUFFERED": "1"})[:2] == (2, LOST)


@ON_FULL_DISKS
@pytest.mark.parametrize("words", ["help", "inspect", "chat", "calibrate"], indirect=True)
def test_what_is_said_beside_an_answer_may_be_lost(words: list[str]) -> None:
    with FULL.open("wb") as full:
        code, _, out = run(words, stderr=full)
    assert code == 0
    assert out
    with FULL.open("wb") as full:
        assert run(["inspect", "none.gguf"], stderr=full)[0] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
@pytest.mark.parametrize("words", ["help", "inspect", "chat"], indirect=True)
def test_a_reader_that_has_left_is_no_error(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(words, stdout=writer)[:2] == (0, [])
    finally:
        os.close(writer)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no shell for it")
@pytest.mark.parametrize("words", ["inspect", "chat"], indirect=True)
def test_streams_may_be_closed(words: list[str]) -> None:
    command = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "minicache_cpp", *words]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("words", ["evaluate", "calibrate"], indirect=True)
def test_characters_that_the_encoding_lacks_are_question_marks(words: list[str]) -> None:
    code, lines, out = run(words, env={"PYTHONIOENCODING": "ascii"})
    assert (code, lines) == (0, [])
    assert b"?" in out
    assert "±" in run(words, env={"PYTHONIOENCODING": "utf-8"})[2].decode("utf-8")
    # the help of the options has such characters too
    assert run([words[0], "--help"], env={"PYTHONIOENCODING": "ascii"})[:2] == (0, [])


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are text there")
def test_a_name_that_is_no_text_is_printed_as_it_is() -> None:
    folder = os.fsdecode(b"/nowhere/m\xff")
    for encoding in ("utf-8", "ascii"):
        env = {"PYTHONIOENCODING": encoding, "MINICACHE_CACHE_DIR": folder}
        code, lines, out = run(["models"], env=env)
        assert (code, lines) == (0, [])
        assert os.fsencode(folder) in out

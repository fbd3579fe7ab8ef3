"""Ctrl-C while an answer is written and at the prompt."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_stops_the_answer_and_not_the_program(models: dict[str, Path]) -> None:
    command = [sys.executable, "-u", "-m", "minicache_cpp", "chat", str(models["chat"]), "--threads", "1"]
    # at temperature 0 this model's answers never end by themselves
    chat = subprocess.Popen(
        [*command, "--temp", "0", "--config", "f16"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert chat.stdin and chat.stdout
    chat.stdin.write(b"hello\n")
    chat.stdin.flush()
    assert chat.stdout.read(40)  # the answer has begun
    chat.send_signal(signal.SIGINT)
    out, err = chat.communicate(b"/memory\n/quit\n", timeout=60)
    assert chat.returncode == 0, err
    assert b"[stopped]" in err
    assert b"KV cache of" in out


@pytest.fixture
def heeds_sigint() -> Iterator[None]:
    """Makes sure that SIGINT is not ignored, as it is in a shell's background jobs, whose children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs pseudo-terminals")
def test_ctrl_c_at_the_prompt_says_how_to_leave(models: dict[str, Path], heeds_sigint: None) -> None:
    import pty

    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "minicache_cpp", "chat", str(models["chat"]), "--threads", "1"]
    chat = subprocess.Popen(
        [*command, "--max-tokens", "4"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""

    def until(words: bytes) -> None:
        nonlocal shown
        while words not in shown:
            assert select.select([controller], [], [], 60)[0], shown
            shown += os.read(controller, 1000)
        shown = shown.partition(words)[2]

    try:
        until(b"> ")
        time.sleep(0.5)  # the program listens a moment after it shows the prompt
        chat.send_signal(signal.SIGINT)
        until(b"Ctrl-D leaves")
        os.write(controller, b"hello\n")
        until(b"tokens/s")
        os.write(controller, b"/quit\n")
        assert chat.wait(timeout=60) == 0
    finally:
        chat.kill()
        os.close(controller)

"""Progress on stderr, on a terminal and elsewhere."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import pytest

from minicache_cpp.host.progress import Progress, StepProgress


class Stderr(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture(params=[True, False])
def stderr(request: pytest.FixtureRequest) -> Stderr:
    return Stderr(request.param)


def test_steps(stderr: Stderr) -> None:
    with redirect_stderr(stderr), StepProgress() as progress:
        progress("one")
        progress("two" * 100)
    shown = stderr.getvalue()
    if stderr.terminal:
        assert "\n" not in shown
        assert shown.startswith("\r\033[Kone\r\033[Ktwo") and shown.endswith("\r\033[K")
        assert shown.count("two") < 40  # the line is not longer than a terminal is wide
    else:
        assert shown == "one\n" + "two" * 100 + "\n"


def test_stages(stderr: Stderr) -> None:
    with redirect_stderr(stderr):
        progress = Progress("work")
        progress(0.0, "reading")
        progress(0.5, "reading", "half of it")
        progress(1.0, "writing")
        progress.note("a note")
    shown = stderr.getvalue()
    if stderr.terminal:
        assert shown.count("\n") == 1 and shown.endswith("\r\033[Ka note\n")
        assert "work [###############---------------]  50% reading half of it" in shown
    else:
        assert shown == "work: reading\nwork: writing\na note\n"


def test_silence(stderr: Stderr) -> None:
    with redirect_stderr(stderr):
        progress = Progress("work", silent=True)
        progress(0.5, "reading")
        progress.note("a note")
    assert stderr.getvalue() == ""

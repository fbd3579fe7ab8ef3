"""Progress on stderr, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr

import pytest

from minicache_cpp.errors import CancelledError
from minicache_cpp.host.progress import Progress, StepProgress, duration


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


def test_time_left_is_told_every_ten_seconds(stderr: Stderr, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("minicache_cpp.host.progress.time.monotonic", lambda: now)
    with redirect_stderr(stderr):
        progress = Progress("work")
        progress(0.2, "reading")  # an earlier run got this far
        for fraction in (0.3, 0.4, 0.6, 0.8):
            now += 6
            progress(fraction, "reading")
    shown = stderr.getvalue()
    if stderr.terminal:
        assert "80%, 8 s left reading" in shown
    else:
        assert (
            shown == "work: reading\nwork: reading, 40% done, 36 s left\nwork: reading, 80% done, 8 s left\n"
        )


def test_a_program_sees_all_and_may_cancel(stderr: Stderr) -> None:
    seen: list[tuple[float, str, str]] = []

    def on_progress(*what: float | str) -> bool | None:
        seen.append(what)  # type: ignore[arg-type]
        return None if len(seen) < 3 else False

    with redirect_stderr(stderr):
        progress = Progress("work", silent=True, on_progress=on_progress)
        progress(-0.1, "reading")
        progress(0.5, "reading", "half")
        with pytest.raises(CancelledError, match="work: cancelled"):
            progress(1.5, "writing")
    assert seen == [(0.0, "reading", ""), (0.5, "reading", "half"), (1.0, "writing", "")]
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_silence(stderr: Stderr) -> None:
    with redirect_stderr(stderr):
        progress = Progress("work", silent=True)
        progress(0.5, "reading")
        progress.note("a note")
    assert stderr.getvalue() == ""


def test_an_app_without_stderr_sees_nothing_and_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw, and in apps that PyInstaller makes with windows."""
    monkeypatch.setattr(sys, "stderr", None)
    seen: list[tuple[float, str, str]] = []
    progress = Progress("title", on_progress=lambda *step: seen.append(step))
    progress(0.5, "stage", "detail")
    progress.note("a note")
    progress.close()
    with StepProgress() as steps:
        steps("a step")
    assert seen == [(0.5, "stage", "detail")]

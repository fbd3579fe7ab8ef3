"""Progress on stderr: one line that is overwritten on a terminal; elsewhere a line for each stage or step, and one
every ten seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from ..errors import CancelledError
from .output import tell

BAR = 30  # characters of the bar
WIDTH = 118  # of the line on a terminal
SECONDS = 10.0  # between two lines of one stage, without a terminal
# the fraction of the work after which its pace is known well enough to estimate the time left
LEAST_DONE = 0.03

# is called with the fraction that is done, the stage and a detail; the work ends if it returns False
OnProgress = Callable[[float, str, str], object]
OnStep = Callable[[str], None]  # is called with what is done now; StepProgress is one


def is_terminal() -> bool:
    """Whether stderr is a terminal; an app with windows has none."""
    return sys.stderr is not None and sys.stderr.isatty()


class ProgressLine:
    """The line on a terminal."""

    def __init__(self) -> None:
        self.terminal = is_terminal()
        self.drawn = False

    def draw(self, line: str) -> None:
        tell(f"\r\033[K{line[:WIDTH]}", end="")
        self.drawn = True

    def close(self) -> None:
        """Removes the line; the next call draws it again."""
        if self.drawn:
            tell("\r\033[K", end="")
            self.drawn = False


class Progress(ProgressLine):
    """Shows which stage a long command is in, how much of all the work is done, and the time that is left.

    on_progress: called with the fraction that is done (0 to 1), the stage and a detail of it, in the thread that works;
        if it returns False, the work ends with CancelledError.
    """

    def __init__(self, title: str, silent: bool = False, on_progress: OnProgress | None = None) -> None:
        super().__init__()
        # an app with windows has no stderr
        self.title, self.silent, self.on_progress = title, silent or sys.stderr is None, on_progress
        self.last_stage = ""
        self.started = self.last_line = time.monotonic()
        self.first_fraction: float | None = None

    def __call__(self, fraction: float, stage: str, detail: str = "") -> None:
        """`fraction` of all the work is done; `stage` is what comes now."""
        fraction = min(max(fraction, 0.0), 1.0)
        if self.on_progress is not None and self.on_progress(fraction, stage, detail) is False:
            raise CancelledError(f"{self.title}: cancelled; what was done so far is kept for the next time")
        if self.silent:
            return
        now = time.monotonic()
        left = self._time_left(fraction, now)
        if self.terminal:
            full = round(BAR * fraction)
            bar = "#" * full + "-" * (BAR - full)
            self.draw(f"{self.title} [{bar}] {fraction:4.0%}{left} {stage} {detail}")
        elif stage != self.last_stage or now - self.last_line >= SECONDS:
            done = f", {fraction:.0%} done{left}" if stage == self.last_stage else ""
            tell(f"{self.title}: {stage}{done}")
            self.last_line = now
        self.last_stage = stage

    def _time_left(self, fraction: float, now: float) -> str:
        """The time left at the pace so far; an empty text while too little is done to estimate it.

        What an earlier, interrupted run has done already counts for no time.
        """
        if self.first_fraction is None:
            self.first_fraction = fraction
        done, seconds = fraction - self.first_fraction, now - self.started
        if done < LEAST_DONE or seconds < 1:
            return ""
        return f", {duration(seconds / done * (1 - fraction))} left"

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        if not self.silent:
            self.close()
            tell(text)


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class StepProgress(ProgressLine):
    """Shows what is done now, where nobody knows how much there is in all."""

    def __call__(self, step: str) -> None:
        if self.terminal:
            self.draw(step)
        else:
            tell(step)

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Progress on stderr: one line that is overwritten on a terminal, a line for each stage or step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable

BAR = 30  # characters of the bar
WIDTH = 118  # of the line on a terminal

OnStep = Callable[[str], None]  # is called with what is done now; StepProgress is one


class ProgressLine:
    """The line on a terminal."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.drawn = False

    def draw(self, line: str) -> None:
        sys.stderr.write(f"\r\033[K{line[:WIDTH]}")
        sys.stderr.flush()
        self.drawn = True

    def close(self) -> None:
        """Removes the line; the next call draws it again."""
        if self.drawn:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self.drawn = False


class Progress(ProgressLine):
    """Shows which stage a long command is in, and how much of all the work is done."""

    def __init__(self, title: str, silent: bool = False) -> None:
        super().__init__()
        self.title, self.silent = title, silent
        self.last_stage = ""

    def __call__(self, fraction: float, stage: str, detail: str = "") -> None:
        """`fraction` of all the work is done; `stage` is what comes now."""
        if self.silent:
            return
        if self.terminal:
            full = round(BAR * min(max(fraction, 0), 1))
            bar = "#" * full + "-" * (BAR - full)
            self.draw(f"{self.title} [{bar}] {fraction:4.0%} {stage} {detail}")
        elif stage != self.last_stage:
            print(f"{self.title}: {stage}", file=sys.stderr, flush=True)
        self.last_stage = stage

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        if not self.silent:
            self.close()
            print(text, file=sys.stderr, flush=True)


class StepProgress(ProgressLine):
    """Shows what is done now, where nobody knows how much there is in all."""

    def __call__(self, step: str) -> None:
        if self.terminal:
            self.draw(step)
        else:
            print(step, file=sys.stderr, flush=True)

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""Progress on stderr: one line that is written over on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import sys

WIDTH = 30  # of the bar


class Progress:
    """Tells which stage of how many a long command is in, and how far the stage is."""

    def __init__(self, title: str, silent: bool = False) -> None:
        self.title, self.silent = title, silent
        self.terminal = sys.stderr.isatty()
        self.last_stage = ""
        self.drawn = False

    def __call__(self, fraction: float, stage: str, detail: str = "") -> None:
        """`fraction` of all the work is done; `stage` is what comes now."""
        if self.silent:
            return
        if self.terminal:
            full = round(WIDTH * min(max(fraction, 0), 1))
            bar = "#" * full + "-" * (WIDTH - full)
            line = f"{self.title} [{bar}] {fraction:4.0%} {stage} {detail}"
            sys.stderr.write(f"\r\033[K{line[:118]}")
            self.drawn = True
        elif stage != self.last_stage:
            sys.stderr.write(f"{self.title}: {stage}\n")
        self.last_stage = stage
        sys.stderr.flush()

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.silent:
            self.close()
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.drawn:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self.drawn = False


def progress(text: str) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{text:<60}", end=end, file=sys.stderr, flush=True)

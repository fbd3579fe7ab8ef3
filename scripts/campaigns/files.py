"""Changed files and texts, each read in a process whose memory is limited: no crash, no hang, no odd exception."""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from campaigns.options import Finding, Outcome, add_options, check_options, report, tell

READER_NAMES = ("plan", "model", "state", "sequence", "chat", "settings")
SECONDS_A_FILE = 30.0
SECONDS_TO_BEGIN = 120.0
PORTION = 2000  # files that one process reads


def configure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "files",
        help="changed files and texts, given to their readers",
        description=__doc__,
        epilog="Example: python scripts/campaigns files --reader plan state --steps 5000 --seed 7",
    )
    add_options(parser, 500, "files of each reader")
    parser.add_argument(
        "--reader", nargs="+", choices=READER_NAMES, default=list(READER_NAMES), help="which (default: all)"
    )
    parser.add_argument("--inside", choices=READER_NAMES, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_options(args)
    if args.inside:
        from campaigns import child

        child.main(args.inside, args.seed, args.steps)
        return 0
    return report(args, campaign(args))


def campaign(args: argparse.Namespace) -> Outcome:
    outcome = Outcome()
    ends = time.monotonic() + 60 * args.minutes if args.minutes else float("inf")
    for reader in dict.fromkeys(args.reader):
        seed, last = args.seed, args.seed + args.steps
        seen: set[str] = set()
        while seed < last and time.monotonic() < ends:
            n_steps = min(PORTION, last - seed)
            tell(f"{reader}: seeds {seed} to {seed + n_steps - 1}")
            seed = read_portion(reader, seed, n_steps, ends, outcome, seen)
    return outcome


def read_portion(reader: str, seed: int, n_steps: int, ends: float, outcome: Outcome, seen: set[str]) -> int:
    """Lets a process read files from a seed on. Returns the first seed that has not been read."""
    child = Child(reader, seed, n_steps)
    begun: int | None = None
    try:
        while time.monotonic() < ends:
            line = child.next_line(SECONDS_TO_BEGIN if begun is None else SECONDS_A_FILE)
            if "begins" in line:
                begun = line["begins"]
            elif "ends" in line:
                outcome.count(f"files of {reader}")
                outcome.count(f"files of {reader}, {line.get('result', 'wrong')}")
                add(outcome, seen, Finding(line["ends"], reader, line.get("wrong", "")))
            elif "peak" in line:
                outcome.measure(f"memory of {reader} in MiB", line["peak"] / 1024)
                return seed + n_steps
            else:
                add(outcome, seen, Finding(seed if begun is None else begun, reader, line["ended"]))
                return seed + n_steps if begun is None else begun + 1
        return seed + n_steps
    finally:
        child.end()


def add(outcome: Outcome, seen: set[str], finding: Finding) -> None:
    """Keeps the first finding of each kind; numbers in its text do not make another kind."""
    if not finding.what:
        return
    outcome.count(f"findings of {finding.where}")
    kind = "".join(c for c in finding.what if not c.isdigit())[:60]
    if kind not in seen:
        seen.add(kind)
        outcome.findings.append(finding)


class Child:
    """A process that reads, and its lines."""

    def __init__(self, reader: str, seed: int, n_steps: int) -> None:
        command = [sys.executable, os.path.dirname(__file__), "files", "--inside", reader]
        self.process = subprocess.Popen(
            [*command, "--seed", str(seed), "--steps", str(n_steps)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # llama.cpp would start a debugger where it aborts, which takes seconds
            env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        )
        self.lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.errors: list[str] = []
        for target in (self._read_lines, self._read_errors):
            threading.Thread(target=target, daemon=True).start()

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors[:] = [*self.errors[-3:], line.strip()[:300]]

    def next_line(self, seconds: float) -> dict[str, Any]:
        """A line of the process, or {"ended": why there is none}."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return {"ended": f"nothing for {seconds:.0f} seconds"}
        if line is not None:
            return line
        code = self.process.wait()
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"ended": f"{why}: {' | '.join(self.errors)}"}

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

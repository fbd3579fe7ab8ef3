"""What all campaigns take on the command line, and what they print at the end."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from minicache_cpp import MiniCacheError
from minicache_cpp.options import add_json_option, check_numbers

NOTHING_FOUND, FOUND, BAD_INPUT = 0, 1, 2
ENOUGH = 20  # findings, after which a campaign ends: they are mostly of one kind


@dataclass(frozen=True)
class Finding:
    """Something that must not happen, the seed that makes it happen again, and what came before it."""

    seed: int
    where: str
    what: str
    steps: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(
            [f"seed {self.seed}, {self.where}: {self.what}", *(f"    {one}" for one in self.steps)]
        )


@dataclass
class Outcome:
    """What a campaign did: numbers by name, and what it found."""

    counts: dict[str, int] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + by

    def measure(self, name: str, value: float) -> None:
        self.largest[name] = max(self.largest.get(name, 0.0), value)

    def find(self, finding: Finding) -> None:
        """Keeps the first finding of each kind; numbers in its text do not make another kind."""
        if not finding.what:
            return
        self.count(f"findings of {finding.where.partition(',')[0]}")
        text = f"{finding.where}: {finding.what}"
        kind = "".join(c for c in text if not c.isdigit())[:90]
        if kind not in self.kinds:
            self.kinds.add(kind)
            self.findings.append(finding)

    @property
    def is_over(self) -> bool:
        return len(self.findings) >= ENOUGH


def add_options(parser: argparse.ArgumentParser, steps: int, of_what: str) -> None:
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the first seed (default: 0)")
    parser.add_argument(
        "--steps", type=int, default=steps, metavar="N", help=f"{of_what} at least (default: {steps})"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        metavar="M",
        help="end after so many minutes (default: no limit)",
    )
    add_json_option(parser)


def end_of(args: argparse.Namespace) -> float:
    """When a campaign that begins now must end, on the monotonic clock."""
    return time.monotonic() + 60 * args.minutes if args.minutes else float("inf")


def check_options(args: argparse.Namespace) -> None:
    """Raises MiniCacheError where a number is out of its range."""
    check_numbers("--steps", [args.steps], 1)
    check_numbers("--seed", [args.seed], 0)
    if not 0 <= args.minutes < float("inf"):
        raise MiniCacheError(f"--minutes {args.minutes}: it must be 0 or more")


def seeds(args: argparse.Namespace) -> Iterator[int]:
    """The first seed and those after it, until the time is over."""
    ends = end_of(args)
    seed = args.seed
    while time.monotonic() < ends:
        yield seed
        seed += 1


def tell(line: str) -> None:
    """Says where a campaign is, so that the seed is known if the process ends."""
    print(line, file=sys.stderr, flush=True)


def report(args: argparse.Namespace, outcome: Outcome) -> int:
    """Prints what was done and found; returns the exit code."""
    if args.json:
        findings = [vars(one) for one in outcome.findings]
        found = {"seed": args.seed, "counts": outcome.counts, "largest": outcome.largest}
        print(json.dumps({**found, "findings": findings}))
    else:
        for name, count in sorted(outcome.counts.items()):
            print(f"{name}: {count:,}")
        for name, value in sorted(outcome.largest.items()):
            print(f"largest {name}: {value:.2g}")
        for one in outcome.findings:
            print(one)
        print(f"{len(outcome.findings)} findings")
    return FOUND if outcome.findings else NOTHING_FOUND

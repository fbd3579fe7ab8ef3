"""Changed files and texts, each read in a process whose memory is limited: no crash, no hang, no odd exception."""

from __future__ import annotations

import argparse
import time

from campaigns.children import Child
from campaigns.options import Finding, Outcome, add_options, check_options, end_of, report, tell

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
    ends = end_of(args)
    for reader in dict.fromkeys(args.reader):
        seed, last = args.seed, args.seed + args.steps
        while seed < last and time.monotonic() < ends:
            n_steps = min(PORTION, last - seed)
            tell(f"{reader}: seeds {seed} to {seed + n_steps - 1}")
            seed = read_portion(reader, seed, n_steps, ends, outcome)
    return outcome


def read_portion(reader: str, seed: int, n_steps: int, ends: float, outcome: Outcome) -> int:
    """Lets a process read files from a seed on. Returns the first seed that has not been read."""
    child = Child(["files", "--inside", reader, "--seed", str(seed), "--steps", str(n_steps)])
    begun: int | None = None
    try:
        while time.monotonic() < ends:
            line = child.next_line(SECONDS_TO_BEGIN if begun is None else SECONDS_A_FILE)
            if "begins" in line:
                begun = line["begins"]
            elif "ends" in line:
                outcome.count(f"files of {reader}")
                outcome.count(f"files of {reader}, {line.get('result', 'wrong')}")
                outcome.find(Finding(line["ends"], reader, line.get("wrong", "")))
            elif "peak" in line:
                outcome.measure(f"memory of {reader} in MiB", line["peak"] / 1024)
                return seed + n_steps
            else:
                outcome.find(Finding(seed if begun is None else begun, reader, line["ended"]))
                return seed + n_steps if begun is None else begun + 1
        return seed + n_steps
    finally:
        child.end()

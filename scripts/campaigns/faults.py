"""Allocations that fail, full disks, processes that are killed or interrupted: nothing old is lost, a rerun goes on."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from campaigns.allocations import compiled
from campaigns.children import Child
from campaigns.options import Finding, Outcome, add_options, check_options, end_of, report, tell
from campaigns.small_disks import wrapper

KINDS = ("memory", "disk", "kill", "interrupt")
SECONDS_A_FAULT = 30.0
SECONDS_TO_BEGIN = 300.0
PORTION = 5000  # allocations that fail in one process


def configure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "faults",
        help="failing allocations, full disks, killed and interrupted processes",
        description=__doc__,
        epilog="Example: python scripts/campaigns faults --kind disk --steps 200 --seed 7",
    )
    add_options(parser, 100, "faults of each kind and, but for memory, of each command,")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="which (default: all)")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="operations whose allocations fail (open, make, decode, shift, save, load, clear, report), or commands "
        "(calibrate, plan, save, evaluate, fetch, shutdown)",
    )
    parser.add_argument("--inside", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--mount", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_options(args)
    if args.inside == "memory":
        from campaigns import memory_child

        memory_child.main(args.only, args.seed, args.steps)
        return 0
    if args.inside:
        from campaigns import disturbed

        disturbed.main(args.inside, args.only, args.seed, args.steps, args.mount)
        return 0
    return report(args, campaign(args))


def campaign(args: argparse.Namespace) -> Outcome:
    outcome = Outcome()
    ends = end_of(args)
    for kind in dict.fromkeys(args.kind):
        if kind == "memory":
            fail_allocations(args, ends, outcome)
        else:
            disturb_commands(args, kind, ends, outcome)
    return outcome


def fail_allocations(args: argparse.Namespace, ends: float, outcome: Outcome) -> None:
    """Lets every allocation fail, or so many of them, in processes that are replaced when they end."""
    from campaigns.memory_operations import GUARDED, OPERATIONS

    names = [name for name in args.only or GUARDED if name in OPERATIONS]
    if not names:
        return
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        seed, last = args.seed, args.seed + args.steps
        while seed < last and time.monotonic() < ends and not outcome.is_over:
            n_steps = min(PORTION, last - seed)
            tell(f"allocations: seeds {seed} to {seed + n_steps - 1}")
            options = ["--only", *names, "--seed", str(seed), "--steps", str(n_steps)]
            child = Child(["faults", "--inside", "memory", *options], {"LD_PRELOAD": str(library)})
            try:
                seed, n_points = fail_portion(child, seed, n_steps, ends, outcome)
            finally:
                child.end()
            last = min(last, n_points)


def fail_portion(child: Child, seed: int, n_steps: int, ends: float, outcome: Outcome) -> tuple[int, int]:
    """Follows a process. Returns the first seed that it has not come to, and how many there are."""
    begun, where, n_points = seed - 1, "allocations", 2**62
    while time.monotonic() < ends:
        line = child.next_line(SECONDS_TO_BEGIN if begun < seed else SECONDS_A_FAULT)
        if "points" in line:
            n_points = line["points"]
            outcome.measure("allocations that can fail", n_points)
        elif "begins" in line:
            begun, where = line["begins"], line["where"]
        elif "ends" in line:
            outcome.count("failed allocations")
            outcome.count(f"failed allocations in {line['operation']}, {line.get('result', 'wrong')}")
            outcome.find(Finding(begun, where, line.get("wrong", "")))
        elif "lost" in line:
            outcome.count("contexts that refused further use", line["lost"])
            outcome.measure("memory in MiB", line["peak"] / 1024)
            return seed + n_steps, n_points
        else:
            outcome.find(Finding(max(begun, seed), where, line["ended"]))
            return max(begun, seed) + 1, n_points
    return seed + n_steps, n_points


def disturb_commands(args: argparse.Namespace, kind: str, ends: float, outcome: Outcome) -> None:
    """Runs commands on disks that are full, or kills or interrupts them."""
    from campaigns.commands import DISTURBED, USUAL

    usual = USUAL[kind]
    names = [name for name in args.only or usual if name in DISTURBED]
    if not names:
        return
    around = wrapper() if kind == "disk" else ()
    tell(f"{kind}: {', '.join(names)}{' on a disk in memory' if around else ''}")
    options = ["--only", *names, "--seed", str(args.seed), "--steps", str(args.steps)]
    mount = ["--mount"] if around else []
    child = Child(["faults", "--inside", kind, *options, *mount], wrapper=around)
    begun, where = args.seed, kind
    try:
        while time.monotonic() < ends and not outcome.is_over:
            line = child.next_line(SECONDS_TO_BEGIN)
            if "begins" in line:
                begun, where = line["begins"], line["where"]
            elif "ends" in line:
                outcome.count(f"{line['name']}, {line.get('result', 'wrong')}")
                outcome.find(Finding(begun, where, line.get("wrong", "")))
            elif "ready" in line:
                tell(f"undisturbed, they take: {', '.join(line['ready'])}")
            else:
                outcome.find(Finding(begun, where, line.get("ended", "")))
                return
    finally:
        child.end()

"""Many chats in one process, and a long text in one context: memory, open files, threads and the loss stay flat."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from campaigns.children import Child
from campaigns.options import Finding, Outcome, add_options, check_options, end_of, report, tell
from minicache_cpp.options import check_numbers

KINDS = ("chats", "server", "drift")
PLANTED = ("memory", "files", "threads", "drift")
SECONDS_A_CHAT = 120.0
# of the private memory; 333 chats are a third of a thousand, so that 12 KiB a chat are noticed
MOST_GROWTH = 4.0
# of the loss in the last pass through the text over that in the second
MOST_DRIFT = 1.25


def configure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "soak",
        help="many chats, many requests, a long text",
        description=__doc__,
        epilog="Example: python scripts/campaigns soak --kind chats --steps 1000 --model smollm2-135m.gguf",
    )
    add_options(parser, 60, "chats, or requests,")
    parser.add_argument(
        "--kind", nargs="+", choices=KINDS, default=["chats", "drift"], help="which (%(default)s)"
    )
    parser.add_argument(
        "--model", type=Path, metavar="GGUF", help="a model (default: a tiny one of random weights)"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=4000,
        metavar="N",
        help="of the text that drift is measured on (%(default)s)",
    )
    parser.add_argument("--inside", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--planted", choices=PLANTED, help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_options(args)
    check_numbers("--tokens", [args.tokens], 1)
    if args.inside == "drift":
        from campaigns import drift

        drift.main(args.model, args.tokens, args.planted == "drift")
        return 0
    if args.inside == "server":
        from campaigns import soak_server

        soak_server.main(args.model, args.seed, args.steps)
        return 0
    if args.inside:
        from campaigns import soak_chats

        soak_chats.main(args.model, args.seed, args.steps, args.planted)
        return 0
    return report(args, campaign(args))


def campaign(args: argparse.Namespace) -> Outcome:
    outcome = Outcome()
    ends = end_of(args)
    for kind in dict.fromkeys(args.kind):
        options = ["soak", "--inside", kind, "--seed", str(args.seed), "--steps", str(args.steps)]
        options += ["--tokens", str(args.tokens)]
        options += ["--model", str(args.model)] if args.model else []
        options += ["--planted", args.planted] if args.planted else []
        child = Child(options)
        try:
            follow(child, kind, args.seed, ends, outcome)
        finally:
            child.end()
    return outcome


def follow(child: Child, kind: str, seed: int, ends: float, outcome: Outcome) -> None:
    """Takes down what a process says it uses after each step, and judges it at the end."""
    uses: list[dict[str, float]] = []
    losses: list[float] = []
    begun, where = seed, kind
    while time.monotonic() < ends:
        line = child.next_line(SECONDS_A_CHAT)
        if "begins" in line:
            begun, where = line["begins"], f"{kind}: {line['where']}"
        elif "uses" in line:
            uses.append(line["uses"])
            outcome.count(kind)
            for name, count in line["did"].items():
                outcome.count(f"{kind}, {name}", count)
            outcome.find(Finding(begun, where, line["wrong"]))
        elif "read" in line:
            continue
        elif "loss" in line:
            losses.append(line["loss"])
            outcome.count("tokens of drift", line["tokens"])
            outcome.count("context shifts of drift", line["shifts"])
            tell(f"drift: pass {len(losses)}, KL {line['loss']:.6f}")
        else:
            if "over" not in line:
                outcome.find(Finding(begun, where, line["ended"]))
            break
    for name, first, last in growth(uses):
        outcome.measure(f"{name} of {kind}, second third", first)
        outcome.measure(f"{name} of {kind}, last third", last)
        if last > first + (MOST_GROWTH if name.endswith("MiB") else 0):
            outcome.find(Finding(seed, kind, f"{name} grow from {first:.1f} to {last:.1f}"))
    for name, value in (("second", losses[1:2]), ("last", losses[-1:])):
        if value:
            outcome.measure(f"KL in the {name} pass", value[0])
    if len(losses) > 2 and losses[-1] > MOST_DRIFT * losses[1]:
        outcome.find(Finding(seed, kind, f"the loss drifts from {losses[1]:.6f} to {losses[-1]:.6f}"))


def growth(uses: list[dict[str, float]]) -> list[tuple[str, float, float]]:
    """For each thing that is used, the most in the second third and in the last third of all steps.

    The first third makes what stays: graphs, buffers of the allocator, compiled templates.
    """
    third = len(uses) // 3
    if third < 2:
        return []
    found = []
    for name in uses[0]:
        values = [one[name] for one in uses]
        found.append((name, max(values[third : 2 * third]), max(values[2 * third :])))
    return found

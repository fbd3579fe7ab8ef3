"""Random walks over memory operations, each of which the library and a reference take side by side."""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from campaigns.members import Library, Logits, Member, Reference
from campaigns.operations import Chooser, Rules, Step
from campaigns.options import Finding, Outcome, add_options, check_options, report, seeds, tell
from minicache_cpp import MiniCacheError
from minicache_cpp.native import binding
from minicache_cpp.native.binding import llama_h
from support.contexts import nmse, quiet

if TYPE_CHECKING:
    from support.cuda_on_cpu import Devices

STEPS_OF_A_WALK = 40
# by how much bounds for f16 are wider on a device, whose kernels have queries, unpacked rows and weights of f16
ON_A_DEVICE = 10


@dataclass(frozen=True)
class Setup:
    """A walk's members, what can be asked of them, and how far they may be apart."""

    name: str
    kind: str  # under which errors are reported
    rules: Rules
    library: Library
    reference: Reference
    bound: float  # of the normalised squared error of a batch's logits
    bound_after_moves: float
    # Where a rounding to levels can go either way, errors add up. A walk whose error has grown to this ends.
    ends_at: float = float("inf")
    # where tokens can change altogether, as with experts that are chosen otherwise, only the best quarter counts
    by_quarter: bool = False
    # whether the reference stays as it was where it refuses a state, as ours does and upstream's does not
    keeps_refused: bool = True


def walk(setup: Setup, seed: int, outcome: Outcome, n_steps: int = STEPS_OF_A_WALK) -> None:
    """Goes until the first finding, or for so many steps. Closes the members."""
    chooser = Chooser(random.Random(f"walk {seed}"), setup.rules, setup.reference)
    done: list[str] = []
    moved = False
    try:
        for _ in range(n_steps):
            name, step = chooser.next()
            done.append(str(step))
            outcome.count("steps")
            outcome.count(f"steps of {setup.kind}")
            outcome.count(f"step {name}")
            moved = moved or step.method in ("seq_add", "seq_div")
            what, goes_on = take(setup, step, moved, outcome)
            if what:
                outcome.findings.append(Finding(seed, setup.name, what, tuple(done)))
            if what or not goes_on:
                return
    finally:
        setup.library.close()
        setup.reference.close()


def take(setup: Setup, step: Step, moved: bool, outcome: Outcome) -> tuple[str, bool]:
    """Takes a step with both members; returns what differs, "" if nothing does, and whether they can go on."""
    before = positions(setup.reference, setup.rules.n_seq)
    try:
        expected = getattr(setup.reference, step.method)(*step.arguments)
        result = getattr(setup.library, step.method)(*step.arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error} ({binding.last_error()})", False
    if isinstance(expected, np.ndarray) and isinstance(result, np.ndarray):
        distance, what = difference(setup, moved, result, expected, outcome)
        if what or distance > setup.ends_at:
            outcome.count("walks ended by rounding", not what)
            return what, False
    elif isinstance(expected, np.ndarray) or isinstance(result, np.ndarray) or result != expected:
        return f"{brief(result)} instead of {brief(expected)} ({binding.last_error()})", False
    if step.method == "restore" and not expected:
        outcome.count("states without room")
        if not setup.keeps_refused:
            same = positions(setup.library, setup.rules.n_seq) == before
            return "" if same else "a refused state has changed positions", False
    after = [positions(one, setup.rules.n_seq) for one in (setup.library, setup.reference)]
    if after[0] != after[1]:
        return f"positions {after[0]} instead of {after[1]}, before that {before}", False
    return "", True


def difference(
    setup: Setup, moved: bool, result: Logits, expected: Logits, outcome: Outcome
) -> tuple[float, str]:
    """How far logits are off, and what is wrong with that, "" if nothing is."""
    if not np.isfinite(result).all():
        return float("inf"), "logits that are not finite"
    errors = [nmse(one, other) for one, other in zip(result, expected, strict=True)]
    error = float(np.quantile(errors, 0.25)) if setup.by_quarter else nmse(result, expected)
    if setup.by_quarter and len(errors) < 4:
        return 0.0, ""
    outcome.measure(f"error of {setup.kind}{' after moves' if moved else ''}", error)
    bound = setup.bound_after_moves if moved else setup.bound
    if error <= bound:
        return error, ""
    each = " ".join(f"{one:.1g}" for one in errors)
    return error, f"an error of {error:.3g}, and {bound:.3g} is allowed; token by token {each}"


def positions(member: Member, n_seq: int) -> list[tuple[int, int]]:
    return [member.positions(seq) for seq in range(n_seq)]


def brief(result: object) -> str:
    return "logits" if isinstance(result, np.ndarray) else str(result)


def configure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "walks",
        help="random memory operations beside a reference",
        description=__doc__,
        epilog="Example: python scripts/campaigns walks --model oracle --steps 10000 --seed 7",
    )
    add_options(parser, 2000, "operations")
    parser.add_argument(
        "--model",
        choices=["oracle", "families", "all"],
        default="all",
        help="plain models beside the NumPy oracle, families beside upstream's f16 cache, or a walk of each in turn",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda-on-cpu"],
        default="cpu",
        help="what computes: the CPU, or the CUDA kernels on it, which MINICACHE_CUDA_ON_CPU names (default: cpu)",
    )
    parser.add_argument(
        "--unsettled",
        action="store_true",
        help="save and restore also while moves and copies wait for the next decode, where llama.cpp errs too",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_options(args)
    llama_h.llama_log_set(quiet, ctypes.c_void_p(0))
    with tempfile.TemporaryDirectory() as folder, devices_of(args.device) as device:
        makers = setups(args.model, Path(folder), device, args.unsettled)
        return report(args, campaign(makers, args))


@contextmanager
def devices_of(name: str) -> Iterator[Devices | None]:
    """What the library computes on: None for the CPU."""
    if name == "cpu":
        yield None
        return
    from support.cuda_on_cpu import devices

    if not os.environ.get("MINICACHE_CUDA_ON_CPU"):
        raise MiniCacheError(
            "--device cuda-on-cpu: MINICACHE_CUDA_ON_CPU must name libminicache-cuda-on-cpu.so"
        )
    with devices() as found:
        yield found


def setups(
    model: str, folder: Path, device: Devices | None = None, unsettled: bool = False
) -> list[Callable[[int], Setup]]:
    """What makes the setup of a seed, one for each kind of reference."""
    from campaigns.walk_families import Families
    from campaigns.walk_plain import PlainModels

    kinds: dict[str, Callable[[int], Setup]] = {
        "oracle": PlainModels(folder, device, unsettled).setup,
        "families": Families(folder, device, unsettled).setup,
    }
    return [make for name, make in kinds.items() if model in (name, "all")]


def campaign(makers: list[Callable[[int], Setup]], args: argparse.Namespace) -> Outcome:
    outcome = Outcome()
    for seed in seeds(args):
        for make in makers:
            setup = make(seed)
            tell(f"seed {seed}: {setup.name}")
            outcome.count("walks")
            walk(setup, seed, outcome)
        if outcome.counts["steps"] >= args.steps or outcome.is_over:
            break
    return outcome

"""Contexts of two models in several threads, with batches that other threads end, in a program of the native tests.

Each thread must compute, bit for bit, what it computes alone. Built with -DMINICACHE_SANITIZE=thread, the program also
says where two threads meet in memory.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from campaigns.children import why_ended
from campaigns.options import Finding, Outcome, add_options, check_options, end_of, report, tell
from minicache_cpp import MiniCacheError
from minicache_cpp.options import check_numbers

PROGRAM = "MINICACHE_THREADS"
SECONDS = 600.0
SUMMARY = "SUMMARY: ThreadSanitizer: "
ROUNDS = 4


def configure(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "threads",
        help="contexts in threads, to be run under ThreadSanitizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python scripts/campaigns threads --program build-tsan/bin/minicache-threads --steps 20",
    )
    add_options(parser, 3, "runs of the program")
    parser.add_argument(
        "--program", type=Path, metavar="FILE", help=f"minicache-threads (default: as {PROGRAM} says)"
    )
    parser.add_argument("--threads", type=int, default=3, metavar="N", help="threads (default: %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_options(args)
    check_numbers("--threads", [args.threads], 1)
    program = args.program or os.environ.get(PROGRAM)
    if not program or not Path(program).exists():
        raise MiniCacheError(
            "minicache-threads is needed: name it with --program; `cmake --build build --target minicache-threads` "
            "builds it"
        )
    return report(args, campaign(args, Path(program).resolve()))


def campaign(args: argparse.Namespace, program: Path) -> Outcome:
    outcome = Outcome()
    ends = end_of(args)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(one) for one in models_and_plans(Path(folder))]
        for seed in range(args.seed, args.seed + args.steps):
            if time.monotonic() > ends or outcome.is_over:
                break
            tell(f"seed {seed}")
            for what in findings([str(program), str(args.threads), str(ROUNDS), str(seed), *files], outcome):
                outcome.find(Finding(seed, "threads", what))
    return outcome


def models_and_plans(folder: Path) -> Iterator[Path]:
    """Two models that turn K in different ways, each with its plan."""
    from minicache_cpp.native.binding import llama_h
    from oracle.model import Config
    from support.contexts import quiet
    from support.loaded import Loaded
    from support.plans import coded
    from support.tiny_models import random_model

    llama_h.llama_log_set(quiet, ctypes.c_void_p(0))
    for arch in ("llama", "qwen2"):
        tiny = random_model(n_layer=4, n_embd=64, n_head=2, n_head_kv=1, arch=arch)
        loaded = Loaded(tiny, folder / f"{arch}.gguf")
        plan = folder / f"{arch}.plan.gguf"
        coded(loaded, Config(((0, 1), (2, 3)), retain=0.1, window=8), plan)
        yield from (loaded.path, plan)


def findings(command: list[str], outcome: Outcome) -> Iterator[str]:
    """Runs the program once; what it and ThreadSanitizer have found."""
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=0 exitcode=66 second_deadlock_stack=1"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield f"no end within {SECONDS:.0f} seconds"
        return
    outcome.count("runs")
    outcome.count("runs under ThreadSanitizer", int(is_sanitized(Path(command[0]))))
    reports = {line.removeprefix(SUMMARY) for line in done.stderr.splitlines() if line.startswith(SUMMARY)}
    yield from sorted(reports)
    yield from (line for line in done.stderr.splitlines() if line.startswith("found: "))
    try:
        counts = json.loads(done.stdout)
    except ValueError:
        yield f"it ends with {why_ended(done.returncode)}: {' | '.join(done.stderr.splitlines()[-3:])[:300]}"
        return
    outcome.count("batches that another thread has ended", counts["ended"])
    outcome.count("contexts in threads", counts["threads"] * (counts["rounds"] + 6))
    if done.returncode and not reports and not counts["found"]:
        yield f"it ends with {why_ended(done.returncode)}"


def is_sanitized(program: Path) -> bool:
    return b"__tsan_init" in program.read_bytes()

#!/usr/bin/env python3
"""Measure all figures of speed on the CPU in docs/speed.md and docs/results.md, in half an hour on two idle cores.

    .venv/bin/python scripts/bench_speed.py build/speed           # writes build/speed/speed.md and speed.json
    .venv/bin/python scripts/bench_speed.py build/speed --only attention --only model
    .venv/bin/python scripts/bench_speed.py build/speed --quick   # shows that it runs; the figures mean nothing

Parts, each by commands that can be given alone and that are shown:

    attention    the op alone, beside upstream's: minicache-test perf --matrix
    model        a model of Llama-3-8B's shape, an eighth of it, random weights: minicache bench --fill copies
    demo         the demo model: minicache bench
    ops          where a token's and a prompt's time goes in both: minicache bench --ops
    throughput   sequences that fit 256 MiB of KV cache, and tokens/s: bench_throughput.py --full
    batched      the same by upstream's llama-batched-bench

Nothing else should run meanwhile. Models and plans that are in the folder already are not made again. A part that fails
is reported, and the others are measured all the same; --only measures it anew and leaves what else was found in the
report.
Without --bin, the programs are built as bootstrap.py does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import speed_goals
import speed_tables
from bootstrap import FAILED, OK, RELEASE, ROOT, BootstrapError
from minicache_cpp.cache.settings import CacheSpec
from minicache_cpp.errors import MiniCacheError
from minicache_cpp.host.threads import cpu_name
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.models.requested import requested_model
from minicache_cpp.models.store import DEMO
from minicache_cpp.native.model_shape import model_shape
from sequences import n_sequences

RATIOS = (5, 8)
BUDGET = 256 << 20  # bytes of the KV cache, of `throughput` and `batched`
CELLS = (1024, 4096)  # of each sequence then
TRIES = 3  # of a program that may print nothing
ROOM, STEPS = 32, 16  # tokens that full sequences have room for, and how many they decode


class Run:
    """Where things are, and how much is measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder: Path = args.folder
        self.quick: bool = args.quick
        self.threads: int = args.threads
        self.bin: Path = args.bin or RELEASE.bin
        self.demo_name: str = args.demo
        self.environment = {name: value for name, value in os.environ.items() if name != "LLAMA_MINICACHE"}
        if args.bin:
            self.environment["MINICACHE_LIB_PATH"] = str(args.bin.resolve())
        self.commands: list[str] = []  # of the part that is measured

    @cached_property
    def demo(self) -> Path:
        """The model of `demo`, which is fetched only for a part that needs it."""
        return requested_model(self.demo_name)

    def call(self, command: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in command]
        texts = [*(f"{name}={value}" for name, value in environment.items()), *words]
        self.commands.append(shlex.join(map(self.shortened, texts)))
        print(f"  {self.commands[-1]}", file=sys.stderr, flush=True)
        done = subprocess.run(
            words, env=self.environment | environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            raise PartError(f"{Path(words[0]).name} ended with {done.returncode}: {' '.join(last)}")
        return done

    def shortened(self, text: str) -> str:
        """Without the machine's folders, for people to read."""
        for folder in (self.folder, self.bin, ROOT):
            text = text.replace(f"{folder}{os.sep}", "")
        return "python" if text == sys.executable else text

    def json_of(self, command: Sequence[object]) -> Any:
        return json.loads(self.call(command).stdout)

    def bench(self, model: Path, *options: object) -> Any:
        command = [sys.executable, "-m", "minicache_cpp", "bench", model, "--threads", self.threads]
        return self.json_of([*command, "--json", *options])

    def model(self) -> Path:
        """An eighth of Llama-3-8B, layers and vocabulary alike; for --quick a tiny model."""
        path = self.folder / ("tiny.gguf" if self.quick else MODEL)
        if not path.exists():
            shape = ["tiny"] if self.quick else ["llama-3-8b", "--layers", 4, "--vocab", 16032]
            self.call([sys.executable, ROOT / "scripts/random_model.py", *shape, "-o", path])
        return path

    def specs(self, model: Path) -> dict[str, str]:
        """The SPEC of each cache that is compared: plain ones, plain layers of a MiniCache context, codes, SLERP."""
        found = {name: name for name in ("f16", "q8_0", "q4_0")}
        made: dict[str, list[object]] = {"plain": ["--plain", "q4_0"]}
        made |= {f"code {ratio}": ["--ratio", ratio] for ratio in RATIOS}
        for name, options in made.items():
            path = self.folder / f"{model.stem}-{name.replace(' ', '-')}.plan.gguf"
            if not path.exists():
                self.call([sys.executable, ROOT / "scripts/random_plan.py", model, *options, "-o", path])
            found[name] = str(path)
        found["slerp"] = "slerp:start=0.5,t=0.6,retain=0.05,type=q4_0"
        return found


class PartError(Exception):
    """A part that cannot be measured."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="for models, plans and results")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        metavar="PART",
        help=f"one of {', '.join(PARTS)}; may be repeated",
    )
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it runs")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="T", help="CPU threads (default: all)"
    )
    parser.add_argument(
        "--bin", type=Path, metavar="DIR", help="folder of minicache-test, llama-batched-bench and libraries"
    )
    parser.add_argument(
        "--demo",
        default=DEMO,
        metavar="MODEL",
        help="the model of `demo`, a GGUF file or a name of `minicache models` (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the object of speed.json, not the tables")
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error(f"--threads {args.threads}: it must be 1 or more")
    args.folder.mkdir(parents=True, exist_ok=True)
    if not args.bin:
        RELEASE.build(["minicache-test", "llama-batched-bench"])
    run = Run(args)
    found: dict[str, Any] = {"machine": machine(run.threads), "quick": args.quick, "parts": {}}
    if args.only:
        found["parts"] = earlier_parts(args.folder / "speed.json", args.quick)
    failed = []
    for name in args.only or PARTS:
        print(f"{name}:", file=sys.stderr, flush=True)
        found["parts"][name] = part = measure(run, name)
        if part["error"]:
            failed.append(name)
            print(f"  {part['text']}", file=sys.stderr)
        print(f"  {part['seconds']:.0f} s", file=sys.stderr)
        (args.folder / "speed.json").write_text(json.dumps(found, indent=1) + "\n")
        (args.folder / "speed.md").write_text(report(run, found))
    print(json.dumps(found, indent=1) if args.json else report(run, found), end="\n" if args.json else "")
    return FAILED if failed else OK


def earlier_parts(path: Path, quick: bool) -> dict[str, Any]:
    """What was measured before in this folder, for reports that are made part by part."""
    try:
        found = json.loads(path.read_text())
        return dict(found["parts"]) if found["quick"] == quick else {}
    except (OSError, ValueError, KeyError):
        return {}


def measure(run: Run, name: str) -> dict[str, Any]:
    run.commands = []
    began = time.monotonic()
    data, error = None, ""
    try:
        data, text = PARTS[name](run)
    except (PartError, MiniCacheError) as reason:
        error, text = str(reason), f"not measured: {reason}"
    seconds = time.monotonic() - began
    return {"commands": run.commands, "seconds": seconds, "found": data, "error": error, "text": text}


def report(run: Run, found: Mapping[str, Any]) -> str:
    """All parts that were measured, as the Markdown of DIR/speed.md."""
    texts = [f"{found['machine']}{QUICK if run.quick else ''}", *goals_of(run, found["parts"])]
    for name in PARTS:
        if name in found["parts"]:
            part = found["parts"][name]
            commands = "\n".join(f"    {command}" for command in part["commands"])
            texts.append(f"## {name}\n\n{commands}\n\n{part['text']}")
    return "\n\n".join(texts) + "\n"


def goals_of(run: Run, parts: Mapping[str, Any]) -> list[str]:
    """The goals of the parts that were measured, beside what was found; none with --quick."""
    found = {name: part["found"] for name, part in parts.items() if not part["error"]}
    if run.quick or not found.keys() & {"attention", "model", "demo", "ops"}:
        return []
    names: dict[str, str] = {}
    models = [run.folder / MODEL] if (run.folder / MODEL).exists() else []
    for model in [run.demo, *models] if found.keys() & {"demo", "ops"} else models:
        names |= names_of(run.specs(model))
    return [f"## goals\n\n{speed_goals.goals_table(found, names)}"]


MODEL = "llama-3-8b-eighth.gguf"
QUICK = " (--quick: these figures mean nothing)"


def machine(threads: int) -> str:
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return f"{cpu_name()}, {os.cpu_count()} CPUs, {threads} threads, {platform.system()}{load}"


def measure_attention(run: Run) -> tuple[Any, str]:
    limits = ["--type", "f16,q4_0,code", "--kv", "512", "--seconds", "0.01", "--rounds", "1"]
    threads = f"1,{run.threads}" if run.threads > 1 else "1"
    command = [run.bin / "minicache-test", "perf", "--matrix", "--threads", threads, "--json"]
    found = run.json_of([*command, *(limits if run.quick else [])])
    cases = speed_tables.cases_of(found)
    return found, f"{speed_tables.CELLS}\n\n{speed_tables.attention_tables(cases)}"


def measure_model(run: Run) -> tuple[Any, str]:
    model = run.model()
    specs = run.specs(model)
    lengths = (64, 600) if run.quick else (512, 4096, 16384)
    return bench_table(run, model, specs, lengths, copies=True, reps=1 if run.quick else 3)


def measure_demo(run: Run) -> tuple[Any, str]:
    specs = run.specs(run.demo)
    reps = 1 if run.quick else 3
    found, text = bench_table(run, run.demo, specs, (64,) if run.quick else (512, 1024, 4096), False, reps)
    if run.quick:
        return found, text
    far, far_text = bench_table(run, run.demo, specs, (8192,), copies=True, reps=reps)
    return [found, far], f"{text}\n\n{far_text}"


def bench_table(
    run: Run, model: Path, specs: Mapping[str, str], lengths: Sequence[int], copies: bool, reps: int
) -> tuple[Any, str]:
    options: list[object] = ["--fill", "copies" if copies else "compute", "--reps", reps]
    options += [word for n in lengths for word in ("--ctx", n)]
    options += [word for spec in specs.values() for word in ("--config", spec)]
    found = run.bench(model, *options)
    note = "; prefill of the first 512 tokens, the rest are copies of their cells" if copies else ""
    return found, f"Tokens/s, medians ± half the distance between the quartiles{note}.\n\n" + (
        speed_tables.model_table(found, names_of(specs))
    )


def measure_ops(run: Run) -> tuple[Any, str]:
    found = []
    texts = []
    for model, fill in ((run.demo, "compute"), (run.model(), "copies")):
        specs = run.specs(model)
        merged = {name: spec for name, spec in specs.items() if name in ("slerp", "code 5", "code 8")}
        # where contexts are longer, attention takes more, and all else less
        lengths = (64, 512) if run.quick else (512, 4096)
        options = ["--fill", fill, "--reps", 3, *(word for n in lengths for word in ("--ctx", n))]
        options += [word for spec in merged.values() for word in ("--config", spec)]
        found.append(run.bench(model, "--ops", *options))
        texts.append(f"**{model.stem}**\n\n{speed_tables.ops_table(found[-1], names_of(specs))}")
    return found, "\n\n".join(texts)


def measure_throughput(run: Run) -> tuple[Any, str]:
    model = run.model()
    specs = run.specs(model)
    rows = []
    for cells in cells_of(run):
        path = run.folder / f"throughput-{cells}.json"
        command = [sys.executable, ROOT / "scripts/bench_throughput.py", model, "--device", "cpu", "--full"]
        command += [
            "--cells",
            cells,
            "--budget",
            f"{budget_of(run) >> 20}M",
            "--threads",
            run.threads,
            "--json",
            path,
        ]
        run.call([*command, "--steps", STEPS, "--config", "f16", "--config", specs["code 5"]])
        found = json.loads(path.read_text())["rows"]
        for row in found:
            times = row["tps"] / found[0]["tps"]
            rows.append({**row, "how": "bench_throughput.py", "cells": cells, "times": times})
    return rows, speed_tables.throughput_table(rows, names_of(specs))


def measure_batched(run: Run) -> tuple[Any, str]:
    """The same sequences: a prompt that all share, copied as bench_throughput.py does it, and tokens behind it."""
    program = run.bin / "llama-batched-bench"
    if not program.is_file():
        raise PartError(f"there is no {program.name}: cmake --build BUILD --target {program.name}")
    model = run.model()
    specs = run.specs(model)
    shape = model_shape(read_gguf(model))
    rows: list[dict[str, Any]] = []
    for cells in cells_of(run):
        first = 0.0
        for name in ("f16", "code 5"):
            spec = CacheSpec.parse(specs[name])
            n = n_sequences(shape, spec, cells, budget_of(run))
            words: list[object] = [program, "-m", model, "-c", n * cells, "-b", 2048, "-ub", 512, "-fa", "on"]
            # a short prompt comes last, because the log's thread loses what it has not printed at the end
            words += ["-pps", "-npp", f"{cells - ROOM},1", "-ntg", STEPS, "-npl", n]
            words += ["-t", run.threads, "-tb", run.threads, "--output-format", "jsonl", "-lv", 4]
            plan = {"LLAMA_MINICACHE": f"plan={specs[name]}"} if spec.minicache else {}
            tps = batched_speed(run, words, plan)
            first = first or tps
            row = {"how": program.name, "cache": specs[name], "cells": cells, "sequences": n}
            rows.append({**row, "kv_bytes": None, "tps": tps, "times": tps / first})
    return rows, speed_tables.throughput_table(rows, names_of(specs))


def batched_speed(run: Run, words: Sequence[object], environment: Mapping[str, str]) -> float:
    """Tokens/s that llama-batched-bench reports of the first prompt; runs it again where it reports nothing."""
    for _ in range(TRIES):
        done = run.call(words, **environment)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if found and environment and "groups of layers coded" not in done.stderr:
            raise PartError("llama-batched-bench did not take the plan")
        if found:
            return float(found[0]["speed_tg"])
    raise PartError("llama-batched-bench printed no result")


def cells_of(run: Run) -> Sequence[int]:
    return (256,) if run.quick else CELLS


def budget_of(run: Run) -> int:
    return 4 << 20 if run.quick else BUDGET


def names_of(specs: Mapping[str, str]) -> dict[str, str]:
    """What tables call each SPEC."""
    titles = {"plain": "q4_0, plain layers of ours", "slerp": "slerp q4_0, S = L/2, γ = 0.05"}
    return {spec: titles.get(name, name) for name, spec in specs.items()}


PARTS: dict[str, Callable[[Run], tuple[Any, str]]] = {
    "attention": measure_attention,
    "model": measure_model,
    "demo": measure_demo,
    "ops": measure_ops,
    "throughput": measure_throughput,
    "batched": measure_batched,
}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (BootstrapError, MiniCacheError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")

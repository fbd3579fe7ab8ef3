#!/usr/bin/env python3
"""Measure decode attention on a device: MiniCache beside llama.cpp's flash attention and a copy in memory.

    python3 scripts/bench_kernels.py --device CUDA0 --json kernels.json

Prints, for 1, 8 and 64 sequences of 4k, 32k and 128k tokens, with 8 KV heads of size 128 and 4 or 8 query heads for
each, the time of one attention (the median of seven runs, and their spread), the bytes that it reads per second, and
how these compare with a copy measured on the device. It runs minicache-bench-kernels of a build with
-DMINICACHE_TESTS=ON: cmake --build BUILD --target minicache-bench-kernels. On a CPU, measure small cases, such as
--kv 4096 --batch 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bootstrap import FAILED, OK, RELEASE


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="CUDA0", help="CPU, CUDA0 and so on (default: CUDA0)")
    for name, default, what in (
        ("kv", "4096,32768,131072", "tokens of a sequence"),
        ("batch", "1,8,64", "sequences"),
        ("gqa", "4,8", "query heads to each KV head"),
    ):
        parser.add_argument(
            f"--{name}", type=numbers, default=default, metavar="N,N", help=f"{what} (default: {default})"
        )
    parser.add_argument("--bin", type=Path, metavar="DIR", help="folder of minicache-bench-kernels")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there as well")
    args = parser.parse_args(argv)

    program = (args.bin or RELEASE.bin) / "minicache-bench-kernels"
    if not program.is_file():
        print(
            f"{program} does not exist; build it: cmake --build BUILD --target minicache-bench-kernels",
            file=sys.stderr,
        )
        return FAILED
    done = subprocess.run(
        [program, args.device, args.kv, args.batch, args.gqa],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return FAILED
    device, copy, *rows = map(json.loads, done.stdout.splitlines())
    if args.json:
        args.json.write_text(json.dumps({**device, "copy_gb_s": copy["gb_s"], "rows": rows}, indent=1) + "\n")
    print(table(device["device"], copy["gb_s"], rows))
    return OK


def numbers(text: str) -> str:
    """The text, after a check that it is what the program takes."""
    if not all(part.isdecimal() and int(part) > 0 for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,8")
    return text


def table(device: str, copy: float, rows: list[dict[str, Any]]) -> str:
    lines = [
        f"decode attention on {device}; a copy on it: {copy:.0f} GB/s",
        f"{'n_kv':>7} {'batch':>5} {'gqa':>3}  {'op':<15}  {'cache':<8}"
        f"{'us':>10}{'spread':>8}{'GB/s':>8}{'of copy':>9}{'time':>7}",
    ]
    plain = {
        (row["n_kv"], row["batch"], row["gqa"], row["cache"]): row["us"]
        for row in rows
        if row["op"] == "flash attention"
    }
    for row in rows:
        place = row["n_kv"], row["batch"], row["gqa"]
        line = f"{place[0]:>7} {place[1]:>5} {place[2]:>3}  {row['op']:<15}  {row['cache']:<8}"
        if row["us"] is None:
            lines.append(f"{line}  {row['reason']}")
            continue
        # codes are compared with q4_0, whose bytes are nearest
        beside = plain.get((*place, row["cache"])) or plain.get((*place, "q4_0"))
        relative = f"{row['us'] / beside:>7.2f}" if beside and row["op"] == "minicache" else ""
        spread = (row["most_us"] - row["least_us"]) / row["us"]
        lines.append(
            f"{line}{row['us']:>10.1f}{spread:>8.0%}{row['gb_s']:>8.0f}{row['gb_s'] / copy:>9.0%}{relative}"
        )
    lines.append("spread: of the slowest and the fastest of seven runs")
    lines.append("time: over flash attention's with a plain cache of the same type, of codes over q4_0's")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

#!/usr/bin/env python3
"""The same tokens on the CPU and on the GPU: how far the logits of plain and merged caches are apart.

    python3 scripts/compare_devices.py --config f16 --config slerp:type=q4_0 --json logits.json

A prompt of a few ubatches, then tokens one at a time. For each cache: the normalised mean squared error of
the GPU's logits against the CPU's, whether two runs on the GPU are the same bit for bit, and what ran on the
CPU all the same. Exit code 1 where an error is more than 1e-3 and more than three times that of the plain f16
cache, or where two runs differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicache_cpp import devices
from minicache_cpp._native import bindings
from minicache_cpp.bench_context import BenchContext, BenchModel
from minicache_cpp.config import CacheSpec
from minicache_cpp.demo_model import demo_model
from minicache_cpp.errors import MiniCacheError
from minicache_cpp.report import read_report

N_PROMPT, N_DECODE, N_BATCH = 600, 32, 256
MAX_NMSE = 1e-3
DEFAULT_SPECS = ("f16", "q4_0", "slerp:type=f16", "slerp:type=q8_0", "slerp:type=q4_0")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file (default: the demo model)")
    parser.add_argument(
        "--config", action="append", metavar="SPEC", help="a cache or a plan, again and again"
    )
    parser.add_argument("--gpu-layers", type=int, default=-1, metavar="N", help="on the GPU (default: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    args = parser.parse_args(argv)

    device = devices.require_gpu()
    path = args.model or demo_model()
    specs = [CacheSpec.parse(text) for text in args.config or DEFAULT_SPECS]
    rows = compare(path, specs, args.gpu_layers)
    if args.json:
        args.json.write_text(json.dumps({"device": device.description, "rows": rows}, indent=1) + "\n")
    print(f"logits of {path.name}: {device.description} against the CPU")
    for row in rows:
        print(
            f"  {row['cache']:<44} prompt {row['prompt']:.2e}  decode {row['decode']:.2e}  "
            f"{'two runs are the same' if row['same'] else 'TWO RUNS DIFFER'}"
            f"{'  on the CPU: ' + row['fallback'] if row['fallback'] else ''}"
        )
    allowed = max(
        [MAX_NMSE, *(3 * max(row["prompt"], row["decode"]) for row in rows if row["cache"] == "f16")]
    )
    return int(any(not row["same"] or not max(row["prompt"], row["decode"]) <= allowed for row in rows))


def compare(path: Path, specs: Sequence[CacheSpec], gpu_layers: int) -> list[dict[str, Any]]:
    with BenchModel(path, 0) as model:
        expected = [logits(model, spec)[0] for spec in specs]
    rows = []
    with BenchModel(path, gpu_layers) as model:
        for spec, (prompt, decode) in zip(specs, expected, strict=True):
            (found_prompt, found_decode), fallback = logits(model, spec)
            again, _ = logits(model, spec)
            rows.append(
                {
                    "cache": spec.name,
                    "prompt": nmse(found_prompt, prompt),
                    "decode": nmse(found_decode, decode),
                    "same": np.array_equal(again[0], found_prompt) and np.array_equal(again[1], found_decode),
                    "fallback": fallback,
                }
            )
    return rows


def logits(model: BenchModel, spec: CacheSpec) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """After each part of the prompt, and after each token that follows; then what the report says of the device."""
    context = BenchContext(model, spec, N_PROMPT + N_DECODE, N_BATCH, 2)
    try:
        prompt = [
            last(context, start, min(N_BATCH, N_PROMPT - start)) for start in range(0, N_PROMPT, N_BATCH)
        ]
        decode = [last(context, N_PROMPT + i, 1) for i in range(N_DECODE)]
        return (np.stack(prompt), np.stack(decode)), read_report(context.ctx).fallback
    finally:
        context.close()


def last(context: BenchContext, start: int, n_tokens: int) -> np.ndarray:
    context.evaluate(start, n_tokens)
    pointer = bindings.llama_get_logits_ith(context.ctx, -1)
    row: np.ndarray = np.ctypeslib.as_array(pointer, (context.n_vocab,)).copy()
    return row


def nmse(x: np.ndarray, expected: np.ndarray) -> float:
    difference = x.astype(np.float64) - expected
    return float((difference**2).sum() / (expected.astype(np.float64) ** 2).sum())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MiniCacheError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")

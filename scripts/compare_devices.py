#!/usr/bin/env python3
"""Compare the logits of plain and merged caches for the same tokens on the CPU and on the GPU.

    python3 scripts/compare_devices.py --config f16 --config slerp:type=q4_0 --json logits.json

Reads a prompt of a few ubatches, then tokens one at a time. Prints for each cache the normalised mean squared error of
the GPU's logits against the CPU's, beside what the cache itself costs (the CPU's logits with it against those with its
plain f16 cache), whether two runs on the GPU are the same bit for bit, and what ran on the CPU nevertheless.

The GPU rounds differently, so where two levels of a quantized row or two candidates for retention are close, it may
choose the other one. Exit code 1 where an error is above all three of 1e-3, three times the error of the plain f16
cache, and a quarter of what the cache costs, or where two runs differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicache_cpp.cache.context_report import read_report
from minicache_cpp.cache.settings import CacheSpec
from minicache_cpp.errors import MiniCacheError
from minicache_cpp.models.requested import requested_model
from minicache_cpp.native import devices
from minicache_cpp.native.binding import llama_h
from minicache_cpp.reading.context import SequenceContext
from minicache_cpp.reading.model import NativeModel

N_PROMPT, N_DECODE, N_BATCH = 600, 32, 256
MAX_NMSE, MAX_OF_COST = 1e-3, 0.25
PLAIN = "f16"
PARTS = ("prompt", "decode")
DEFAULT_SPECS = (PLAIN, "q4_0", "slerp:type=f16", "slerp:type=q8_0", "slerp:type=q4_0")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", nargs="?", help="a GGUF file, or a name of `minicache models` (default: the demo model)"
    )
    parser.add_argument(
        "--config", action="append", metavar="SPEC", help="a cache or a plan; may be repeated"
    )
    parser.add_argument(
        "--gpu-layers", type=int, default=-1, metavar="N", help="layers on the GPU (default: all)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there as well")
    args = parser.parse_args(argv)

    device = devices.require_gpu()
    path = requested_model(args.model)
    specs = [CacheSpec.parse(text) for text in args.config or DEFAULT_SPECS]
    rows = compare(path, specs, args.gpu_layers)
    if args.json:
        args.json.write_text(json.dumps({"device": device.description, "rows": rows}, indent=1) + "\n")
    print(f"logits of {path.name}: {device.description} against the CPU")
    for row in rows:
        print(
            f"  {row['cache']:<44} prompt {row['prompt']:.1e} of {row['cost_prompt']:.1e}  "
            f"decode {row['decode']:.1e} of {row['cost_decode']:.1e}  "
            f"{'two runs are the same' if row['same'] else 'TWO RUNS DIFFER'}"
            f"{'  on the CPU: ' + row['fallback'] if row['fallback'] else ''}"
        )
    plain = max([0.0, *(row[part] for row in rows for part in PARTS if row["cache"] == PLAIN)])
    return int(not all(agrees(row, plain) for row in rows))


def agrees(row: dict[str, Any], plain: float) -> bool:
    """Whether a cache does the same on GPU and CPU, within bounds; plain: the largest error of the plain f16 cache."""
    allowed = {part: max(MAX_NMSE, 3 * plain, MAX_OF_COST * row[f"cost_{part}"]) for part in PARTS}
    return row["same"] and all(row[part] <= allowed[part] for part in PARTS)


def compare(path: Path, specs: Sequence[CacheSpec], gpu_layers: int) -> list[dict[str, Any]]:
    with NativeModel(path, 0) as model:
        plain = logits(model, CacheSpec.parse(PLAIN))[0]
        expected = [logits(model, spec)[0] for spec in specs]
    rows = []
    with NativeModel(path, gpu_layers) as model:
        for spec, wanted in zip(specs, expected, strict=True):
            found, fallback = logits(model, spec)
            again, _ = logits(model, spec)
            row: dict[str, Any] = {"cache": spec.name, "fallback": fallback}
            row["same"] = all(np.array_equal(*pair) for pair in zip(found, again, strict=True))
            for part, on_gpu, on_cpu, without in zip(PARTS, found, wanted, plain, strict=True):
                row[part] = nmse(on_gpu, on_cpu)
                row[f"cost_{part}"] = nmse(on_cpu, without)
            rows.append(row)
    return rows


def logits(model: NativeModel, spec: CacheSpec) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """The logits after each part of the prompt and after each further token, and what ran on the CPU nevertheless."""
    context = SequenceContext(model, spec, N_PROMPT + N_DECODE, N_BATCH, 2)
    try:
        prompt = [
            last(context, start, min(N_BATCH, N_PROMPT - start)) for start in range(0, N_PROMPT, N_BATCH)
        ]
        decode = [last(context, N_PROMPT + i, 1) for i in range(N_DECODE)]
        return (np.stack(prompt), np.stack(decode)), read_report(context.ctx).fallback
    finally:
        context.close()


def last(context: SequenceContext, start: int, n_tokens: int) -> np.ndarray:
    context.evaluate(start, n_tokens)
    pointer = llama_h.llama_get_logits_ith(context.ctx, -1)
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

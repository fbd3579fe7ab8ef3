#!/usr/bin/env python3
"""Measure tokens per second with a fixed budget for the KV cache, decoding as many sequences at once as fit it.

    python3 scripts/bench_throughput.py random-8b.gguf --budget 8G --config f16 --config slerp:type=q4_0 --device cuda
    python3 scripts/bench_throughput.py 8b-4.gguf --budget 256M --config f16 --config 5.plan.gguf --device cpu --full

Requests have lengths like those of ShareGPT's conversations: prompts of 161 and answers of 338 tokens on average (Kwon
et al. 2023, arXiv 2309.06180), drawn from log-normal distributions whose logarithm has a standard deviation of 1, and
clipped to 4 to 512 tokens each. Each sequence has a stream of 1024 cells; one that has finished makes room for the next
request. The tokens of answers are counted. Every cache gets the same requests in the same order.

With --full there are no requests, which would take too long on a CPU: every sequence starts with all cells but the last
32 full, copied from one prompt, and decodes one token in each step. The caches take their steps in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicache_cpp.cache.context_report import read_report
from minicache_cpp.cache.settings import CacheSpec
from minicache_cpp.calibrate.command import parse_size
from minicache_cpp.errors import MiniCacheError
from minicache_cpp.host.threads import default_threads
from minicache_cpp.host.units import mib
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native import binding, devices
from minicache_cpp.native.batch import BatchToken, TokenBatch, filler_token
from minicache_cpp.native.binding import llama_h
from minicache_cpp.native.model_shape import model_shape
from minicache_cpp.options import check_numbers, check_threads
from minicache_cpp.reading.model import NativeModel
from sequences import n_sequences

MEAN_PROMPT, MEAN_ANSWER, DEVIATION = 161, 338, 1.0
SHORTEST, LONGEST = 4, 512
CELLS = 1024  # of each sequence
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
N_BATCH = 2048
N_STEPS = 32  # decoded at most by full sequences
N_PROMPT = 512  # tokens of a step that fills sequences


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--budget", required=True, metavar="SIZE", help="for the KV cache, such as 8G")
    parser.add_argument(
        "--config", action="append", required=True, metavar="SPEC", help="a cache to measure; may be repeated"
    )
    parser.add_argument("--requests", type=int, default=256, metavar="N", help="requests (default: 256)")
    parser.add_argument("--full", action="store_true", help="only decode, with sequences that are full")
    parser.add_argument(
        "--cells", type=int, default=CELLS, metavar="N", help=f"tokens of a sequence (default: {CELLS})"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=16,
        metavar="N",
        help=f"with --full: steps to decode, 1 to {N_STEPS} (default: 16)",
    )
    parser.add_argument("--threads", type=int, metavar="T", help="CPU threads (default: the number of cores)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements there as well")
    args = parser.parse_args(argv)
    check_numbers("--requests", [args.requests], 1)
    check_numbers("--cells", [args.cells], 2 * N_STEPS if args.full else 2 * LONGEST)
    check_threads(args.threads)
    if not 1 <= args.steps <= N_STEPS:
        raise MiniCacheError(f"--steps {args.steps}: it must be from 1 to {N_STEPS}")

    gpu = devices.require_gpu() if args.device == "cuda" else None
    budget = parse_size(args.budget)
    threads = args.threads or default_threads()
    specs = [CacheSpec.parse(text) for text in args.config]
    rows = []
    with NativeModel(args.model, -1 if gpu else 0) as model:
        services = (Service(model, args.model, spec, budget, args.cells, threads) for spec in specs)
        if args.full:
            rows = measure_full(list(services), args.steps)
            print("\n".join(line(row, rows[0]) for row in rows))
        else:
            for service in services:
                rows.append(measure(service, args.requests))
                print(line(rows[-1], rows[0]), flush=True)
    if args.json:
        found = {
            "model": args.model.name,
            "device": gpu.description if gpu else "CPU",
            "threads": threads,
            "budget": budget,
            "cells": args.cells,
            "full": args.full,
        }
        args.json.write_text(json.dumps({**found, "rows": rows}, indent=1) + "\n")
    return 0


def line(row: dict[str, Any], first: dict[str, Any]) -> str:
    return (
        f"{row['cache']:<48} {row['sequences']:>4} sequences  {row['kv_bytes'] / 2**20:>9.0f} MiB  "
        f"{row['tps']:>9.1f} tokens/s  {row['tps'] / first['tps']:>5.2f} x  peak {row['peak_bytes'] / 2**20:.0f} MiB"
    )


@dataclass
class Request:
    prompt: int
    answer: int
    done: int = 0  # tokens evaluated

    @property
    def total(self) -> int:
        return self.prompt + self.answer


def draw_requests(n: int) -> list[Request]:
    rng = np.random.default_rng(1)

    def lengths(mean: float) -> list[int]:
        values = rng.lognormal(np.log(mean) - DEVIATION**2 / 2, DEVIATION, n)
        return [int(value) for value in np.clip(values, SHORTEST, LONGEST)]

    return [Request(*both) for both in zip(lengths(MEAN_PROMPT), lengths(MEAN_ANSWER), strict=True)]


class Service:
    """A context of as many sequences as the budget has room for, each with a stream of its own."""

    def __init__(
        self, model: NativeModel, path: Path, spec: CacheSpec, budget: int, cells: int, threads: int
    ) -> None:
        self.model, self.spec, self.cells = model, spec, cells
        fit = n_sequences(model_shape(read_gguf(path)), spec, cells, budget)
        self.sequences = min(MAX_SEQUENCES, fit)
        if self.sequences < 1:
            raise MiniCacheError(f"{spec.name}: not even one sequence of {cells} tokens fits {mib(budget)}")
        self.free_before = [gpu.free for gpu in devices.gpus()]
        n_ctx = self.sequences * cells
        self.ctx = model.open_context(
            spec, N_BATCH, threads, n_ctx=n_ctx, n_seq_max=self.sequences, kv_unified=False
        )
        self.batch = TokenBatch(N_BATCH)

    def close(self) -> None:
        self.batch.close()
        binding.free_context(self.ctx)

    def row(self, tokens: int, seconds: float, peak: int | None = None) -> dict[str, Any]:
        """The measurement, JSON-ready; peak: the least GPU memory that was free, in bytes."""
        kv_bytes = read_report(self.ctx).bytes
        on_gpu = self.free_before and peak is not None
        return {
            "cache": self.spec.name,
            "sequences": self.sequences,
            "kv_bytes": kv_bytes,
            "tokens": tokens,
            "seconds": seconds,
            "tps": tokens / seconds,
            "peak_bytes": sum(self.free_before) - (peak or 0) if on_gpu else kv_bytes,
        }

    def fill(self) -> None:
        """Fill all sequences, except for the cells of N_STEPS tokens."""
        for start in range(0, self.first, N_PROMPT):
            n = min(N_PROMPT, self.first - start)
            self.evaluate([(0, start + i) for i in range(n)])
        memory = llama_h.llama_get_memory(self.ctx)
        for seq in range(1, self.sequences):
            llama_h.llama_memory_seq_cp(memory, 0, seq, -1, -1)
        self.step(0)  # does the copies and builds the graph, which does not count
        for seq in range(self.sequences):
            llama_h.llama_memory_seq_rm(memory, seq, self.first, -1)

    @property
    def first(self) -> int:
        """The position of the first token that full sequences decode."""
        return self.cells - N_STEPS

    def step(self, number: int) -> float:
        """Seconds to decode the next token of every sequence."""
        began = time.perf_counter()
        self.evaluate([(seq, self.first + number) for seq in range(self.sequences)])
        return time.perf_counter() - began

    def evaluate(self, tokens: Sequence[tuple[int, int]]) -> None:
        """Read filler tokens at these places, given as (sequence, position)."""
        n_vocab = self.model.n_vocab
        self.batch.decode(
            self.ctx,
            (
                BatchToken(filler_token(seq + position, n_vocab), position, seq, True)
                for seq, position in tokens
            ),
        )


def measure(service: Service, n_requests: int) -> dict[str, Any]:
    """Serve requests, close the service, and return its row."""
    try:
        warm_up = draw_requests(service.sequences)
        serve(service, warm_up)
        llama_h.llama_memory_clear(llama_h.llama_get_memory(service.ctx), True)
        requests = draw_requests(n_requests)
        began = time.perf_counter()
        peak = serve(service, requests)
        seconds = time.perf_counter() - began
        return service.row(sum(request.answer for request in requests), seconds, peak)
    finally:
        service.close()


def measure_full(services: Sequence[Service], n_steps: int) -> list[dict[str, Any]]:
    """Decode with full sequences, a step of each service in turn, and close them; rows have the steps' median."""
    try:
        for service in services:
            service.fill()
        seconds = [[service.step(number) for service in services] for number in range(n_steps)]
        return [
            service.row(service.sequences, statistics.median(times))
            for service, times in zip(services, zip(*seconds, strict=True), strict=True)
        ]
    finally:
        for service in services:
            service.close()


def serve(service: Service, requests: Sequence[Request]) -> int:
    """Answer all requests; returns the least GPU memory that was free, in bytes."""
    memory = llama_h.llama_get_memory(service.ctx)
    waiting = list(reversed(requests))
    active: dict[int, Request] = {}
    least = 1 << 62
    step = 0
    while waiting or active:
        for slot in range(service.sequences):
            if waiting and slot not in active:
                active[slot] = waiting.pop()
        service.batch.decode(service.ctx, next_tokens(active, service.model.n_vocab))
        if step % 16 == 0:
            least = min(least, sum(gpu.free for gpu in devices.gpus()))
        step += 1
        for slot in [slot for slot, request in active.items() if request.done >= request.total]:
            llama_h.llama_memory_seq_rm(memory, slot, -1, -1)
            del active[slot]
    return least


def next_tokens(active: dict[int, Request], n_vocab: int) -> list[BatchToken]:
    """The answers' next tokens, then as much of the prompts as there is room for; counted as done."""
    tokens: list[BatchToken] = []
    for slot, request in sorted(active.items(), key=lambda item: item[1].done < item[1].prompt):
        n = min(max(1, request.prompt - request.done), N_BATCH - len(tokens))
        for at in range(request.done, request.done + n):
            tokens.append(BatchToken(filler_token(slot + at, n_vocab), at, slot, at >= request.prompt - 1))
        request.done += n
    return tokens


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MiniCacheError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")

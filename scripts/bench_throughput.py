#!/usr/bin/env python3
"""Tokens per second at a fixed budget for the KV cache: as many sequences at once as fit it.

    python3 scripts/bench_throughput.py random-8b.gguf --budget 8G --config f16 --config slerp:type=q4_0 --device cuda

Requests have lengths like those of ShareGPT's conversations: prompts of 161 and answers of 338 tokens in the
mean (Kwon et al. 2023, arXiv 2309.06180), drawn from log-normal distributions with a deviation of 1 of the
logarithm, clipped to 4 to 512 tokens each. Each sequence has a stream of 1024 cells. A sequence that is done
makes room for the next request. Counted are the answers' tokens; what is drawn, and the order, is the same
for every cache.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minicache_cpp import _native, devices, kv_size
from minicache_cpp._native import bindings
from minicache_cpp.bench_context import BenchModel
from minicache_cpp.calibrate import parse_size
from minicache_cpp.config import CacheSpec
from minicache_cpp.errors import MiniCacheError
from minicache_cpp.ggml_types import GGML_TYPES
from minicache_cpp.gguf_file import read_gguf
from minicache_cpp.report import read_report

MEAN_PROMPT, MEAN_ANSWER, DEVIATION = 161, 338, 1.0
SHORTEST, LONGEST = 4, 512
CELLS = 1024  # of a sequence
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
N_BATCH = 2048


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--budget", required=True, metavar="SIZE", help="for the KV cache, such as 8G")
    parser.add_argument(
        "--config", action="append", required=True, metavar="SPEC", help="a cache, again and again"
    )
    parser.add_argument("--requests", type=int, default=256, metavar="N", help="requests (default: 256)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there as well")
    args = parser.parse_args(argv)

    gpu = devices.require_gpu() if args.device == "cuda" else None
    budget = parse_size(args.budget)
    rows = []
    with BenchModel(args.model, -1 if gpu else 0) as model:
        for text in args.config:
            rows.append(measure(model, args.model, CacheSpec.parse(text), budget, args.requests))
            print(line(rows[-1], rows[0]), flush=True)
    if args.json:
        found = {"model": args.model.name, "device": gpu.description if gpu else "CPU", "budget": budget}
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


def measure(model: BenchModel, path: Path, spec: CacheSpec, budget: int, n_requests: int) -> dict[str, Any]:
    shape = kv_size.model_shape(read_gguf(path))
    one = kv_size.kv_bytes(shape, spec, CELLS)
    sequences = min(MAX_SEQUENCES, budget // one)
    if sequences < 1:
        raise MiniCacheError(f"{spec.name}: a sequence takes {one} bytes, the budget is {budget}")
    free_before = [gpu.free for gpu in devices.gpus()]
    params = bindings.llama_context_default_params()
    params.n_seq_max = sequences
    params.kv_unified = False
    params.n_ctx = sequences * CELLS
    params.n_batch = params.n_ubatch = N_BATCH
    params.type_k, params.type_v = GGML_TYPES[spec.type_k].number, GGML_TYPES[spec.type_v].number
    params.flash_attn_type = bindings.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.no_perf = True
    model.log.clear()
    with _native.creating_contexts(spec.minicache):
        ctx = bindings.llama_init_from_model(model.model, params)
    if ctx is None:
        raise MiniCacheError(f"{spec.name} can't be used: {_native.last_error() or model.log.reason()}")
    batch = bindings.llama_batch_init(N_BATCH, 0, 1)
    try:
        kv_bytes = read_report(ctx).bytes
        serve(ctx, batch, model.n_vocab, draw_requests(sequences), sequences)  # warms up
        bindings.llama_memory_clear(bindings.llama_get_memory(ctx), True)
        requests = draw_requests(n_requests)
        began = time.perf_counter()
        peak = serve(ctx, batch, model.n_vocab, requests, sequences)
        seconds = time.perf_counter() - began
    finally:
        bindings.llama_batch_free(batch)
        bindings.llama_free(ctx)
    tokens = sum(request.answer for request in requests)
    return {
        "cache": spec.name,
        "sequences": sequences,
        "kv_bytes": kv_bytes,
        "tokens": tokens,
        "seconds": seconds,
        "tps": tokens / seconds,
        "peak_bytes": sum(free_before) - peak if free_before else kv_bytes,
    }


def serve(ctx: Any, batch: Any, n_vocab: int, requests: Sequence[Request], sequences: int) -> int:
    """Answer all requests; the least memory that was free in between."""
    memory = bindings.llama_get_memory(ctx)
    waiting = list(reversed(requests))
    active: dict[int, Request] = {}
    least = 1 << 62
    step = 0
    while waiting or active:
        for slot in range(sequences):
            if waiting and slot not in active:
                active[slot] = waiting.pop()
        # the answers' next tokens, then as much of the prompts as there is room for
        batch.n_tokens = 0
        for slot, request in sorted(active.items(), key=lambda item: item[1].done < item[1].prompt):
            n = max(1, request.prompt - request.done)
            n = min(n, N_BATCH - batch.n_tokens)
            for i in range(n):
                at = batch.n_tokens
                batch.token[at] = (slot + request.done + i) * 7919 % n_vocab
                batch.pos[at] = request.done + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot
                batch.logits[at] = request.done + i >= request.prompt - 1
                batch.n_tokens += 1
            request.done += n
        if status := bindings.llama_decode(ctx, batch):
            raise MiniCacheError(f"llama_decode failed with {status}")
        bindings.llama_synchronize(ctx)
        if step % 16 == 0:
            least = min(least, sum(gpu.free for gpu in devices.gpus()))
        step += 1
        for slot in [slot for slot, request in active.items() if request.done >= request.total]:
            bindings.llama_memory_seq_rm(memory, slot, -1, -1)
            del active[slot]
    return least


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MiniCacheError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")

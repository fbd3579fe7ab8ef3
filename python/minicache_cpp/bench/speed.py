"""Prefill and decode speed of several caches, side by side in one process.

At each context length, all contexts are filled chunk by chunk in turn, and then decode in turn, so that whatever else
the machine does slows all of them alike. The results are medians, and the distance between the quartiles.

With `copies`, one chunk is computed and its cells are copied for the rest of the context. Decode takes the same time
over cells of any content, and a context that takes minutes to compute is full within seconds.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..cache.room import refuse_too_large
from ..cache.settings import CacheSpec
from ..host.progress import OnStep
from ..host.threads import cpu_name
from ..modelfile.gguf_file import GGUFFile
from ..native import devices
from ..reading.context import SequenceContext
from ..reading.model import NativeModel

N_DECODE = 32  # tokens of one measurement
N_BATCH = 512
PREFILL_TOKENS = 16384  # a context is filled several times, up to this many tokens in all

Opened = list[tuple[SequenceContext, "Samples"]]


@dataclass
class Samples:
    """Tokens per second of one cache at one context length, of several repetitions."""

    spec: CacheSpec
    n_kv: int
    kv_bytes: int = 0
    n_computed: int = 0  # tokens that are computed to fill the context; the others are copies
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def measure(
    file: GGUFFile,
    contexts: Sequence[int],
    specs: Sequence[CacheSpec],
    threads: int,
    reps: int,
    gpu_layers: int = 0,
    on_step: OnStep = lambda step: None,
    copies: bool = False,
) -> dict[str, Any]:
    """The speeds of each cache with each number of tokens in it, as one JSON-ready object (docs/speed.md).

    reps: measurements of each number. copies: fill contexts with copies of their first tokens.
    """
    refuse_too_large(file, max(contexts) + N_DECODE, specs, gpu_layers)
    rows = []
    with NativeModel(file.path, gpu_layers) as model:
        for n_kv in contexts:
            with side_by_side(model, specs, n_kv, threads, copies) as opened:
                fill(opened, n_kv, reps, on_step, copies)
                decode(opened, n_kv, reps, on_step)
            rows += [row(samples) for _, samples in opened]
        found = devices.gpus() if gpu_layers else []
        device = found[0].description if found else cpu_name()
    compare(rows)
    return {
        "model": str(file.path),
        "device": device,
        "threads": threads,
        "reps": reps,
        "fill": "copies" if copies else "compute",
        "rows": rows,
    }


@contextlib.contextmanager
def side_by_side(
    model: NativeModel, specs: Sequence[CacheSpec], n_kv: int, threads: int, copies: bool = False
) -> Iterator[Opened]:
    """A context for each cache, all open at the same time, with the samples to fill."""
    opened: Opened = []
    try:
        for spec in specs:
            context = SequenceContext(model, spec, n_kv + N_DECODE, N_BATCH, threads, copies)
            opened.append((context, Samples(spec, n_kv, context.kv_bytes())))
        yield opened
    finally:
        for context, _ in opened:
            context.close()


def fill(
    opened: Opened,
    n_kv: int,
    reps: int,
    on_step: OnStep,
    copies: bool = False,
) -> None:
    """Fills all contexts, chunk by chunk in turn, as often as PREFILL_TOKENS allows."""
    times = max(1, min(reps, PREFILL_TOKENS // n_kv))
    n_computed = min(n_kv, N_BATCH) if copies else n_kv
    for repetition in range(times):
        seconds = [0.0] * len(opened)
        for context, _ in opened:
            context.clear()
        for start in range(0, n_computed, N_BATCH):
            on_step(f"context {n_kv}: filling, {repetition + 1} of {times}, token {start}")
            for i, (context, _) in enumerate(opened):
                began = time.perf_counter()
                context.evaluate(start, min(N_BATCH, n_computed - start))
                seconds[i] += time.perf_counter() - began
        for i, (_, samples) in enumerate(opened):
            samples.n_computed = n_computed
            samples.prefill.append(n_computed / seconds[i])
    for context, _ in opened if n_computed < n_kv else ():
        context.fill_by_copies(n_computed, n_kv)


def decode(opened: Opened, n_kv: int, reps: int, on_step: OnStep) -> None:
    """Decodes token after token behind a full context, in turn, and removes them from the cache again."""
    for context, _ in opened:  # the first tokens build the graphs and do not count
        context.mark()
        context.evaluate(n_kv, 1)
        context.evaluate(n_kv + 1, 1)
        context.back()
    for repetition in range(reps):
        on_step(f"context {n_kv}: decoding, {repetition + 1} of {reps}")
        for context, samples in opened:
            began = time.perf_counter()
            for i in range(N_DECODE):
                context.evaluate(n_kv + i, 1)
            samples.decode.append(N_DECODE / (time.perf_counter() - began))
            context.back()


def row(samples: Samples) -> dict[str, Any]:
    """Speeds in tokens per second, JSON-ready; iqr: the distance between the quartiles."""
    return {
        "case": f"{samples.spec.name} @ {samples.n_kv}",
        "cache": samples.spec.cache,
        "minicache": samples.spec.minicache.spec() if samples.spec.minicache else None,
        "n_kv": samples.n_kv,
        "batch": 1,
        "ubatch": N_BATCH,
        "kv_bytes": samples.kv_bytes,
        "prefill_tps": statistics.median(samples.prefill),
        "prefill_iqr": quartile_range(samples.prefill),
        "prefill_reps": len(samples.prefill),
        "prefill_tokens": samples.n_computed,
        "decode_tps": statistics.median(samples.decode),
        "decode_iqr": quartile_range(samples.decode),
        "decode_reps": len(samples.decode),
    }


def compare(rows: list[dict[str, Any]]) -> None:
    """Adds each row's speed relative to the plain cache of the same type, None where that was not measured."""
    plain = {(row["cache"], row["n_kv"]): row for row in rows if row["minicache"] is None}
    for one in rows:
        reference = plain.get((one["cache"], one["n_kv"]))
        for name in ("prefill", "decode"):
            one[f"{name}_vs_plain"] = one[f"{name}_tps"] / reference[f"{name}_tps"] if reference else None


def quartile_range(values: list[float]) -> float | None:
    """The distance between the quartiles, None for a single value."""
    if len(values) < 2:
        return None
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first

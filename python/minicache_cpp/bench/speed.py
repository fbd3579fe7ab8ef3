"""Prefill and decode speed of several caches, side by side in one process.

At each context length all contexts are filled chunk by chunk in turn, and then decode in turn, so that whatever else
the machine does falls on all of them alike. The table shows medians, and how far the quartiles are apart.

With `copies`, one chunk is computed and its cells are copied for the rest of the context. Decode takes the same time
over cells of any content, and a context that takes minutes to compute is full within seconds.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..cache.room import refuse_too_large
from ..cache.settings import CacheSpec
from ..host.threads import cpu_name
from ..host.units import mib
from ..modelfile.gguf_file import GGUFFile
from ..native import devices
from ..reading.context import SequenceContext

N_DECODE = 32  # tokens of one measurement
N_BATCH = 512
PREFILL_TOKENS = 16384  # a context is filled several times, up to so many tokens


@dataclass
class Samples:
    """Tokens per second of one cache at one context length, measured again and again."""

    spec: CacheSpec
    n_kv: int
    kv_bytes: int = 0
    n_computed: int = 0  # tokens that are evaluated to fill the context
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


def measure(
    file: GGUFFile,
    contexts: Sequence[int],
    specs: Sequence[CacheSpec],
    threads: int,
    reps: int,
    gpu_layers: int = 0,
    on_progress: Callable[[str], None] = lambda text: None,
    copies: bool = False,
) -> dict[str, Any]:
    """Everything the table says, as one JSON-ready object."""
    from ..reading.model import NativeModel

    refuse_too_large(file, max(contexts) + N_DECODE, specs, gpu_layers)
    rows = []
    with NativeModel(file.path, gpu_layers) as model:
        for n_kv in contexts:
            with side_by_side(model, specs, n_kv, threads, copies) as pairs:
                fill(pairs, n_kv, reps, on_progress, copies)
                decode(pairs, n_kv, reps, on_progress)
            rows += [row(samples) for _, samples in pairs]
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
    model: Any, specs: Sequence[CacheSpec], n_kv: int, threads: int, copies: bool = False
) -> Iterator[list[tuple[SequenceContext, Samples]]]:
    from ..reading.context import SequenceContext

    pairs: list[tuple[SequenceContext, Samples]] = []
    try:
        for spec in specs:
            context = SequenceContext(model, spec, n_kv + N_DECODE, N_BATCH, threads, copies)
            pairs.append((context, Samples(spec, n_kv, context.kv_bytes())))
        yield pairs
    finally:
        for context, _ in pairs:
            context.close()


def fill(
    pairs: list[tuple[SequenceContext, Samples]],
    n_kv: int,
    reps: int,
    on_progress: Callable[[str], None],
    copies: bool = False,
) -> None:
    """Fill all contexts, chunk by chunk in turn, as often as is affordable."""
    times = max(1, min(reps, PREFILL_TOKENS // n_kv))
    n_computed = min(n_kv, N_BATCH) if copies else n_kv
    for repetition in range(times):
        seconds = [0.0] * len(pairs)
        for context, _ in pairs:
            context.clear()
        for start in range(0, n_computed, N_BATCH):
            on_progress(f"context {n_kv}: filling, {repetition + 1} of {times}, token {start}")
            for i, (context, _) in enumerate(pairs):
                began = time.perf_counter()
                context.evaluate(start, min(N_BATCH, n_computed - start))
                seconds[i] += time.perf_counter() - began
        for i, (_, samples) in enumerate(pairs):
            samples.n_computed = n_computed
            samples.prefill.append(n_computed / seconds[i])
    for context, _ in pairs if n_computed < n_kv else ():
        context.fill_by_copies(n_computed, n_kv)


def decode(
    pairs: list[tuple[SequenceContext, Samples]], n_kv: int, reps: int, on_progress: Callable[[str], None]
) -> None:
    """Decode one token after the other behind a full context, in turn, and take them back again."""
    for context, _ in pairs:  # the first tokens pay for the graphs
        context.evaluate(n_kv, 1)
        context.evaluate(n_kv + 1, 1)
        context.cut(n_kv)
    for repetition in range(reps):
        on_progress(f"context {n_kv}: decoding, {repetition + 1} of {reps}")
        for context, samples in pairs:
            began = time.perf_counter()
            for i in range(N_DECODE):
                context.evaluate(n_kv + i, 1)
            samples.decode.append(N_DECODE / (time.perf_counter() - began))
            context.cut(n_kv)


def row(samples: Samples) -> dict[str, Any]:
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
    """Each row's speed over that of the plain cache of the same type, None where that was not measured."""
    plain = {(row["cache"], row["n_kv"]): row for row in rows if row["minicache"] is None}
    for one in rows:
        base = plain.get((one["cache"], one["n_kv"]))
        for name in ("prefill", "decode"):
            one[f"{name}_vs_plain"] = one[f"{name}_tps"] / base[f"{name}_tps"] if base else None


def quartile_range(values: list[float]) -> float | None:
    """The distance between the quartiles, None of a single value."""
    if len(values) < 2:
        return None
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return third - first


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['model']} on {found['device']}, {found['threads']} threads",
        "tokens/s: median ± half the distance between the quartiles",
    ]
    if found["fill"] == "copies":
        lines.append(
            f"prefill of the first {N_BATCH} tokens at most, the rest of a context are copies of them"
        )
    rows = found["rows"]
    width = max(len(one["minicache"] or one["cache"]) for one in rows)
    for n_kv in dict.fromkeys(one["n_kv"] for one in rows):
        lines += [
            "",
            f"{f'context {n_kv}':<{width}}  {'KV':>11}"
            + "".join(f"  {name:>16}  {'x plain':>7}" for name in ("prefill", "decode")),
        ]
        for one in (one for one in rows if one["n_kv"] == n_kv):
            cells = [f"{one['minicache'] or one['cache']:<{width}}", f"{mib(one['kv_bytes']):>11}"]
            for name in ("prefill", "decode"):
                spread = one[f"{name}_iqr"]
                speed = f"{one[f'{name}_tps']:.1f}" + (f" ± {spread / 2:.1f}" if spread is not None else "")
                relative = one[f"{name}_vs_plain"]
                cells += [f"{speed:>16}", f"{relative:>7.2f}" if relative is not None else f"{'':>7}"]
            lines.append("  ".join(cells))
    return "\n".join(lines)

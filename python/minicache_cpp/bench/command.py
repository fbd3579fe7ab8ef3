"""`minicache bench`: prefill and decode speed of plain and MiniCache caches, side by side in one process.

At each context length all contexts are filled chunk by chunk in turn, and then decode in turn, so that
whatever else the machine does falls on all of them alike. What is told are medians, and how far the quartiles
are apart.

With `--fill copies` one chunk is computed and its cells are copied for the rest of the context. Decode takes the same
time over cells of any content, and a context that takes minutes to compute is full within seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import devices, host_memory, kv_size
from .chat import default_threads
from .cli import add_json_option, add_machine_options, add_model_argument, check_numbers
from .config import SPEC_HELP, CacheSpec
from .demo_model import demo_model
from .errors import MiniCacheError
from .gguf_file import GGUFFile, read_gguf
from .report import mib

if TYPE_CHECKING:
    from .bench_context import BenchContext

EXAMPLE = "minicache bench model.gguf --ctx 4096 --config q4_0 --config slerp:type=q4_0"
DEFAULT_CTX = (512, 4096, 16384)
DEFAULT_SPECS = ("f16", "q8_0", "q4_0", "slerp:type=f16", "slerp:type=q8_0", "slerp:type=q4_0")
N_DECODE = 32  # tokens of one measurement
N_BATCH = 512
FILLS = ("compute", "copies")
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


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--ctx",
        type=int,
        action="append",
        metavar="N",
        help=f"tokens in the cache, again and again (default: {DEFAULT_CTX})",
    )
    parser.add_argument("--config", action="append", metavar="SPEC", help=f"a cache to measure: {SPEC_HELP}")
    parser.add_argument(
        "--reps", type=int, default=5, metavar="R", help="measurements of each number (default: 5)"
    )
    parser.add_argument(
        "--fill",
        choices=FILLS,
        default=FILLS[0],
        help=f"copies: evaluate the first {N_BATCH} tokens of a context and copy them for the rest, which is quick and "
        "the same for decode; prefill is then that of these tokens",
    )
    parser.add_argument(
        "--ops",
        action="store_true",
        help="tell where the time goes: the share of each kind of operation in prefill and decode",
    )
    add_machine_options(parser)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="cuda: all layers on the GPU, an error without one"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    contexts = sorted(set(args.ctx or DEFAULT_CTX))
    specs = list(dict.fromkeys(map(CacheSpec.parse, args.config or DEFAULT_SPECS)))
    threads = args.threads or default_threads()
    for name, value in (("ctx", contexts[0]), ("threads", threads), ("reps", args.reps)):
        check_numbers(f"--{name}", [value], 1)
    if args.device and args.gpu_layers:
        raise MiniCacheError("--device says where all layers are: leave --gpu-layers out")
    if args.device == "cuda":
        devices.require_gpu()
    gpu_layers = -1 if args.device == "cuda" else args.gpu_layers
    file = read_gguf(args.model or demo_model())
    copies = args.fill == "copies"
    if args.ops:
        from . import bench_ops

        if gpu_layers:
            raise MiniCacheError("--ops tells of the CPU: leave --device and --gpu-layers out")
        found = bench_ops.measure(file, contexts, specs, threads, args.reps, copies, progress)
        text = bench_ops.table(found)
    else:
        found = measure(file, contexts, specs, threads, args.reps, gpu_layers, progress, copies)
        text = table(found)
    print(json.dumps(found, indent=2) if args.json else text)
    return 0


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
    from .bench_context import BenchModel

    shape = kv_size.model_shape(file)
    if not shape.unknown and gpu_layers == 0:
        largest = max(contexts) + N_DECODE
        needed = sum(kv_size.kv_bytes(shape, spec, largest) for spec in specs)
        host_memory.refuse_too_large(largest, needed, file.weight_bytes)
    rows = []
    with BenchModel(file.path, gpu_layers) as model:
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
        "fill": FILLS[copies],
        "rows": rows,
    }


@contextlib.contextmanager
def side_by_side(
    model: Any, specs: Sequence[CacheSpec], n_kv: int, threads: int, copies: bool = False
) -> Iterator[list[tuple[BenchContext, Samples]]]:
    from .bench_context import BenchContext

    pairs: list[tuple[BenchContext, Samples]] = []
    try:
        for spec in specs:
            context = BenchContext(model, spec, n_kv + N_DECODE, N_BATCH, threads, copies)
            pairs.append((context, Samples(spec, n_kv, context.kv_bytes())))
        yield pairs
    finally:
        for context, _ in pairs:
            context.close()


def fill(
    pairs: list[tuple[BenchContext, Samples]],
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
    pairs: list[tuple[BenchContext, Samples]], n_kv: int, reps: int, on_progress: Callable[[str], None]
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


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def progress(text: str) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{text:<60}", end=end, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    from .cli import run_command

    return run_command("bench", argv)


if __name__ == "__main__":
    sys.exit(main())

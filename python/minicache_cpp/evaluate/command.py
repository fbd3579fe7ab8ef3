"""`minicache evaluate`: what KV caches cost in quality and take in bytes, side by side in one run."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache.settings import SPEC_HELP, CacheSpec
from ..errors import MiniCacheError
from ..host.demo_model import demo_model
from ..host.progress import progress
from ..host.threads import default_threads
from ..host.units import mib
from ..modelfile.gguf_file import read_gguf
from ..options import add_json_option, add_machine_options, add_model_argument, check_numbers
from ..text import bundled
from ..text.files import read_texts
from .facts import N_FACTS, VALUES

EXAMPLE = "minicache evaluate model.gguf --ctx 4096 --pos-offset 0 --pos-offset 20000 --config q4_0 --json"
DEFAULT_CTX = 1024
DECODE_UBATCH = 1
PROMPT_UBATCH = 64
DEFAULT_SPECS = ("f16", "q8_0", "q4_0", "slerp:type=f16", "slerp:type=q4_0")
DISK = (
    "the f16 cache's distributions of one half chunk are kept in the temporary folder (TMPDIR): "
    "2 bytes x context x vocabulary, 600 MB at 2048 tokens and 150,000 words"
)


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--text", action="append", metavar="FILE", help="UTF-8 text, again and again (default: ours)"
    )
    parser.add_argument(
        "--ctx",
        type=int,
        action="append",
        metavar="N",
        help=f"tokens of a chunk, and of the cache, again and again (default: {DEFAULT_CTX}); {DISK}",
    )
    parser.add_argument(
        "--pos-offset",
        type=int,
        action="append",
        metavar="P",
        help="position of the first token, again and again (default: 0)",
    )
    parser.add_argument("--config", action="append", metavar="SPEC", help=f"a cache to measure: {SPEC_HELP}")
    parser.add_argument(
        "--ubatch",
        type=int,
        metavar="N",
        help="tokens read at a time, which MiniCache sees exactly while earlier ones are merged "
        f"(default: 1, as in decode, and {PROMPT_UBATCH} for facts and the text after them, as prompts are read)",
    )
    parser.add_argument(
        "--chunks", type=int, metavar="N", help="chunks of text (default: 4, fewer if the text is short)"
    )
    parser.add_argument(
        "--recall",
        type=int,
        action="append",
        metavar="DISTANCE",
        help="tokens between planted facts and the questions for them, again and again "
        "(default: a quarter and three quarters of the context)",
    )
    parser.add_argument("--no-recall", action="store_true", help="plant no facts")
    parser.add_argument(
        "--rounds",
        type=int,
        default=4,
        metavar="R",
        help=f"rounds of {N_FACTS} facts for each distance (default: 4)",
    )
    add_machine_options(parser)
    add_json_option(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw KL over bytes, as .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    for name, values, least in (
        ("--ctx", args.ctx, 8),
        ("--pos-offset", args.pos_offset, 0),
        ("--ubatch", [args.ubatch], 1),
        ("--chunks", [args.chunks], 1),
        ("--recall", args.recall, 1),
        ("--rounds", [args.rounds], 1),
        ("--threads", [args.threads], 1),
    ):
        check_numbers(name, values, least)
    if args.recall and args.no_recall:
        raise MiniCacheError("--recall and --no-recall contradict each other; leave one out")
    specs = cache_specs(args.config or DEFAULT_SPECS)
    if args.plot:
        from .plot import check_plot

        check_plot(args.plot)
    file = read_gguf(args.model or demo_model())
    paths = args.text or bundled.evaluation_files()
    text = read_texts(paths)

    from . import evaluation

    settings = evaluation.Settings(
        contexts=list(dict.fromkeys(args.ctx or [DEFAULT_CTX])),
        offsets=list(dict.fromkeys(args.pos_offset or [0])),
        specs=specs,
        ubatch=args.ubatch or DECODE_UBATCH,
        prompt_ubatch=args.ubatch or PROMPT_UBATCH,
        chunks=args.chunks,
        recall=None if args.no_recall else list(dict.fromkeys(args.recall or [])),
        rounds=args.rounds,
        threads=args.threads or default_threads(),
        gpu_layers=args.gpu_layers,
    )
    notes = evaluation.check_positions(file, settings)
    material = evaluation.prepare(file.path, text, settings)
    evaluation.check_room(file, material, settings)
    for note in notes:
        print(f"minicache: warning: {note}", file=sys.stderr)
    runs = evaluation.measure(file, material, settings, progress)
    for found in runs:
        found |= {"text": [Path(path).name for path in paths], "rounds": args.rounds}
    print(to_json(runs) if args.json else table(runs))
    if args.plot:
        from .plot import plot

        plot(args.plot, runs)
        print(f"minicache: the plot is in {args.plot}", file=sys.stderr)
    return 0


def cache_specs(names: Sequence[str]) -> list[CacheSpec]:
    """Each configuration once; f16 is always among them, as the floor."""
    specs = list(dict.fromkeys(map(CacheSpec.parse, names)))
    f16 = CacheSpec.parse("f16")
    return specs if f16 in specs else [f16, *specs]


def to_json(runs: list[dict[str, Any]]) -> str:
    """The first run as one object; where there are more, all of them in its "runs"."""
    found = dict(runs[0])
    if len(runs) > 1:
        found["runs"] = runs
    return json.dumps(finite(found), indent=2)


def finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(runs: Sequence[dict[str, Any]]) -> str:
    """One table of all contexts and first positions."""
    found = runs[0]
    scored = ", ".join(dict.fromkeys(f"{one['tokens']} at context {one['context']}" for one in runs))
    reading = (
        "one token at a time, as in decode" if found["ubatch"] == 1 else f"{found['ubatch']} tokens at a time"
    )
    lines = [
        f"{Path(found['model']).name}, read {reading}, threads {found['threads']}",
        f"tokens scored: {scored}, the second halves of chunks of {', '.join(found['text'])}",
        "KL in nats ± its standard error, and top-1, against the model's own f16 cache; the f16 rows are the floor",
    ]
    distances = sorted({int(one) for run in runs for one in run["rows"][0]["recall_by_distance"]})
    if distances:
        asked = found["rows"][0]["recall_asked"] // len(found["rows"][0]["recall_by_distance"])
        lines.append(
            f"recall: {asked} questions for each distance in tokens, chance 1 in {len(VALUES)} or less, "
            f"read {found['prompt_ubatch']} tokens at a time"
        )
    sizes, losses = ["KV", "ratio", "total", "bits"], ["mean KL", "±", "p99 KL", "max KL", "top-1", "ppl"]
    recalls = [f"recall {distance}" for distance in distances]
    cells = [["cache", "context", "from", *sizes, *losses, *recalls]]
    for run in runs:
        for row in run["rows"]:
            recalled = row["recall_by_distance"]
            cells.append(
                [
                    row["name"],
                    str(run["context"]),
                    str(run["pos_offset"]),
                    mib(row["bytes"]),
                    f"{row['ratio']:.2f}",
                    f"{row['total_ratio']:.2f}",
                    f"{row['bits_per_value']:.2f}",
                    digits(row["kl_mean"]),
                    digits(row["kl_mean_stderr"], 1),
                    digits(row["kl_p99"]),
                    digits(row["kl_max"]),
                    f"{row['top1']:.1%}",
                    f"{row['ppl']:.3f}",
                    *(f"{recalled[one]:.1%}" if one in recalled else "-" for one in map(str, distances)),
                ]
            )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines.append("")
    for number, (first, *rest) in enumerate(cells):
        if number > 1 and rest[:2] != cells[number - 1][1:3]:
            lines.append("")  # a context and a position are a block of rows
        numbers = (f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([f"{first:<{widths[0]}}", *numbers]).rstrip())
    notes = {
        f"note: {row['name']}: {row['note']}": None for run in runs for row in run["rows"] if row["note"]
    }
    return "\n".join([*lines, *notes])


def digits(value: float, significant: int = 3) -> str:
    """A number with its first digits that say something, and no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"

"""Compare KV-cache methods on the same tokens: KVarN, TurboQuant, KIVI, llama.cpp's types, and our plans.

A float32 simulation in NumPy of a llama or qwen2 model reads a text with each method's cache. Tokens are read --block
at a time; those of a block see each other exactly, and all earlier ones only through what the method restores. So all
methods see the same tokens, and no rounding of the arithmetic hides what they lose. The second half of the context is
compared with the predictions of a float32 cache: KL divergence in nats, top-1 agreement, and perplexity.

"bytes/token" is what a coded token takes in all layers, scales and zero points included, and "ratio" is f16's bytes
over it. "with all" adds the exact tokens and the tables, per token of this context, and "total" is f16's over that.

Example:

    python scripts/rivals model.gguf --text wiki.txt --ctx 1024 --config q4_0 kivi kvarn:k=4,v=2 plan:model.plan.gguf
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minicache_cpp.host.progress import StepProgress
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.options import add_json_option, check_numbers
from rivals.command import add_text_options, first_tokens, guarded
from rivals.measure import measure, table
from rivals.methods import NAME_HELP, method_of
from rivals.weights import read_weights

DEFAULT_METHODS = ("f16", "q8_0", "q4_0", "kivi", "kvarn", "turboquant")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python scripts/rivals",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_text_options(parser)
    parser.add_argument(
        "--config",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"{NAME_HELP}; may be repeated (default: {' '.join(DEFAULT_METHODS)})",
    )
    parser.add_argument(
        "--block", type=int, default=64, metavar="N", help="tokens read at a time (default: 64)"
    )
    parser.add_argument(
        "--tail",
        type=int,
        default=0,
        metavar="N",
        help="latest tokens that every method keeps exactly (default: 0)",
    )
    add_json_option(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    return guarded("rivals", run, parse(argv))


def run(args: argparse.Namespace) -> None:
    for option, value, least in (
        ("--ctx", args.ctx, 8),
        ("--block", args.block, 1),
        ("--tail", args.tail, 0),
    ):
        check_numbers(option, [value], least)
    file = read_gguf(args.model)
    tokens = first_tokens(args.model, args.text, args.ctx)
    with StepProgress() as progress:
        progress("reading the weights")
        weights = read_weights(file)
        names = dict.fromkeys(args.config or DEFAULT_METHODS)
        methods = {name: method_of(name, file, weights, len(tokens)) for name in names}
        rows = measure(weights, tokens, methods, args.block, args.tail, progress)
    if args.json:
        settings = {"model": args.model.name, "text": [path.name for path in args.text], "ctx": args.ctx}
        settings |= {"block": args.block, "tail": args.tail}
        print(json.dumps({**settings, "rows": [asdict(row) for row in rows]}))
    else:
        print(table(rows))


if __name__ == "__main__":
    raise SystemExit(main())

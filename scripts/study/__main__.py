"""Compare codes for K and V at equal bytes: what each idea would gain over the codes that plans have today.

The model's K and V, and how much errors in them count, are taken from a calibration, which is kept in --work. Then
every variant is fitted to them, and a text is read with it in the float32 simulation of scripts/rivals, in which
nothing but the cache loses anything: KL divergence from the exact cache, in nats, over the second half of the context.

A variant is "today", or settings that differ from it, separated by commas:

    ratio=5          f16 bytes of a token over those of its codes
    layers=2         layers that share a code
    widths=head      each head has its own widths; group: all heads of a group the same
    unit=16          coefficients that share a width
    values=uniform   levels at equal distances; best: those of least error; points: 16 or 32 for several coefficients;
                     trellis: 64, by a window of 6 bits
    weights=numbers  errors are weighted number by number; full: by matrices of the queries and the output matrix
    omitted=1        what the error of a coefficient that is left out counts, over that of one that is rounded
    time=0           the bytes that a unit is worth in each layer whose attention reads it
    block=128        K is coded relative to multiples of this position; 0: as it is after RoPE
    code=head        a code is of one head's K, or V; heads: of all heads'; kv: of a head's K and V
    mean=kept        the mean is coded with the rest; apart: it is added to what is restored
    mag=8            bits of a magnitude
    scale=token      each token multiplies its steps by what suits it best; fixed: all tokens have the same steps
    length=kept      a magnitude keeps the length; unbiased: the part along the vector; least: the error least
    rows=even        all tokens have the same widths; later: those that count most have larger ones, in the same bytes,
                     by what they will be read for, which no cache knows; seen: by what the window's tokens read
    large=0.0625     the share of tokens that do
    window=64        first and latest tokens that are kept uncoded
    pool=q8_0        their cache type, or f16

"expected" is the loss that the choice of widths goes by. "mult." are decode's multiply-adds for a cached token and a
query head of each KV head, in all layers. Bytes are those of codes and magnitudes; "with all" adds the window, and
leaves out the decoders.

Example:

    python scripts/study smollm2.gguf --text wiki.txt --ctx 1024 --config today widths=group unit=8
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minicache_cpp.host.progress import StepProgress
from minicache_cpp.host.tables import aligned
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.options import add_json_option, check_numbers
from rivals.command import add_text_options, first_tokens, guarded
from rivals.measure import Row, measure
from rivals.weights import read_weights
from study.importance import Importance, importance
from study.knowledge import calibrated
from study.matrices import TEXTS, Matrices, full_weights
from study.method import VariantMethod
from study.variants import Variant

# more than the fast way's, so that less of a comparison is chance
N_TOKEN = 20480
BLOCK = 64  # tokens that are read at a time


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python scripts/study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_text_options(parser)
    parser.add_argument("--config", nargs="+", default=["today"], metavar="VARIANT", help="see above")
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="keeps what the calibration measured"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=N_TOKEN,
        metavar="N",
        help="of the calibration's text (default: %(default)s)",
    )
    add_json_option(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    return guarded("study", run, parse(argv))


def run(args: argparse.Namespace) -> None:
    check_numbers("--ctx", [args.ctx], 256)
    variants = {text: Variant.parse(text) for text in args.config}
    file = read_gguf(args.model)
    tokens = first_tokens(args.model, args.text, args.ctx)
    weights = read_weights(file)
    known = calibrated(file, weights.shape, args.tokens, args.work, threads=1)

    @cache
    def important(window: int) -> Importance:
        return importance(weights, tokens, BLOCK, known.source.samples.gains, window)

    @cache
    def matrices(rope_block: int, window: int) -> Matrices:
        samples = known.source.samples
        texts = [chunk.tokens for chunk in list(samples.chunks.values())[:TEXTS]]
        return full_weights(weights, texts, BLOCK, rope_block, window)

    def matrices_of(variant: Variant) -> Matrices | None:
        return matrices(variant.block, variant.window) if variant.weights == "full" else None

    def importance_of(variant: Variant) -> Importance | None:
        return important(variant.window) if variant.rows != "even" else None

    with StepProgress() as progress:
        methods = {
            name: VariantMethod(known, one, name, progress, importance_of(one), matrices_of(one))
            for name, one in variants.items()
        }
        measured = measure(weights, tokens, dict(methods), BLOCK, 0, progress)
    rows = list(zip(methods.values(), measured, strict=True))
    if args.json:
        print(
            json.dumps({"model": args.model.name, "ctx": args.ctx, "rows": [as_json(*row) for row in rows]})
        )
    else:
        print(table(rows))


def as_json(method: VariantMethod, row: Row) -> dict[str, object]:
    return {**asdict(row), "expected": method.expected, "multiply_adds": method.multiply_adds}


def table(rows: list[tuple[VariantMethod, Row]]) -> str:
    head = [
        "variant",
        "bytes/token",
        "ratio",
        "with all",
        "mean KL",
        "±",
        "median",
        "99 %",
        "expected",
        "mult.",
    ]
    cells = [
        [
            row.method,
            f"{row.token_bytes:.0f}",
            f"{row.ratio:.2f}",
            f"{row.all_bytes:.0f}",
            f"{row.kl_mean:.5f}",
            f"{row.kl_mean_stderr:.5f}",
            f"{row.kl_median:.5f}",
            f"{row.kl_p99:.4f}",
            f"{method.expected:.5f}",
            f"{method.multiply_adds:.0f}",
        ]
        for method, row in rows
    ]
    return "\n".join(aligned([head, *cells]))


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure the figures of the MiniCache paper (Liu et al. 2024, arXiv 2405.14366) on GGUF models.

Quality (KL divergence from the model's own f16 cache, top-1 agreement, perplexity) over the number of merged layers,
for averaging, SLERP, SLERP after a change of basis, and calibrated codes of no more bytes; over the SLERP parameter t;
over the fraction of retained tokens; and over the ratio, with 4-bit caches. Each model gets a folder with results.json,
results.md and, where matplotlib is installed, the plots. What is in results.json is not measured again, so a run that
was interrupted continues where it stopped.

Example:

    python scripts/paper smollm2-135m.gguf --out paper
    python scripts/paper a.gguf b.gguf --out paper --ctx 2048 --chunks 4
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minicache_cpp import MiniCacheError
from minicache_cpp.modelfile.ggml_types import CACHE_TYPES
from paper import figures, lab, output, results

NUMBERS = {
    "n_ctx": ("--ctx", 64, "tokens of a chunk, and of the cache"),
    "chunks": ("--chunks", 1, "chunks of text that are measured on"),
    "ubatch": ("--ubatch", 1, "tokens read at a time; these are seen exactly while earlier ones are merged"),
    "tokens": ("--tokens", 512, "tokens of text that basis matrices and codes are fitted to"),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python scripts/paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL", help="a GGUF file")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where a folder for each model is made"
    )
    parser.add_argument(
        "--figure",
        action="append",
        choices=figures.FIGURES,
        help="measure only this figure; may be repeated (default: all)",
    )
    parser.add_argument(
        "--type",
        action="append",
        choices=CACHE_TYPES,
        help="cache type to merge; may be repeated; t and retention use the first (default: f16 and q4_0)",
    )
    parser.add_argument(
        "--text",
        action="append",
        type=Path,
        metavar="FILE",
        help="UTF-8 text to measure on; may be repeated (default: the text that comes with the package)",
    )
    defaults = {one.name: one.default for one in fields(results.Settings)}
    for name, (option, _, what) in NUMBERS.items():
        parser.add_argument(
            option,
            dest=name,
            type=int,
            default=defaults[name],
            metavar="N",
            help=f"{what} (default {defaults[name]})",
        )
    parser.add_argument("--threads", type=int, default=1, metavar="T", help="CPU threads (default 1)")
    parser.add_argument("--fresh", action="store_true", help="measure again what results.json holds")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        run(args)
    except (MiniCacheError, OSError) as error:
        print(f"paper: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("paper: stopped; the same command continues from here", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    for name, (option, least, _) in {**NUMBERS, "threads": ("--threads", 1, "")}.items():
        if getattr(args, name) < least:
            raise MiniCacheError(f"{option} {getattr(args, name)}: it must be {least} or more")
    names = [path.stem for path in args.models]
    if len(set(names)) != len(names):
        raise MiniCacheError("two of the models have the same name, so their folders would too; rename one")
    settings = results.Settings(**{name: getattr(args, name) for name in NUMBERS})
    for path in args.models:
        one_model(path, args, settings)


def one_model(path: Path, args: argparse.Namespace, settings: results.Settings) -> None:
    started = time.monotonic()

    def on_step(text: str) -> None:
        print(f"{path.stem} {time.monotonic() - started:5.0f} s  {text}", file=sys.stderr, flush=True)

    out = args.out / path.stem
    found, wanted = lab.measure(
        path,
        lambda n_layer: figures.figures(
            n_layer, args.figure or figures.FIGURES, args.type or ("f16", "q4_0")
        ),
        settings,
        out,
        paths=args.text or (),
        threads=args.threads,
        fresh=args.fresh,
        on_step=on_step,
    )
    plots = []
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        on_step("no plots without matplotlib: pip install 'minicache-cpp[plot]'")
    else:
        for figure in wanted:
            output.plot(out / f"{figure.name}.svg", found.rows, figure, path.stem)
            plots.append(f"{figure.name}.svg")
    (out / "results.md").write_text(output.markdown(found.data, wanted, plots), encoding="utf-8")
    on_step(f"done: {out / 'results.md'}")


if __name__ == "__main__":
    raise SystemExit(main())

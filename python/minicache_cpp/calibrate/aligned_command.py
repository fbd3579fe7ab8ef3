"""`minicache calibrate --mode aligned`: fits basis matrices for SLERP, for study, and writes the plan."""

from __future__ import annotations

import argparse
import json

from ..cache.settings import MiniCache
from ..errors import MiniCacheError
from ..host.output import show
from ..host.progress import Progress
from ..modelfile.gguf_file import read_gguf
from ..models.requested import requested_model
from .options import Options, check_options, check_output, threads_for
from .table import aligned_table

SETTINGS = {
    "start": "the first layer that may be merged, a fraction or a layer number (default 0.5)",
    "t": "SLERP parameter (default 0.6)",
    "retain": "fraction of the tokens that stay unmerged (default 0.05)",
    "type": "cache type of directions and plain layers (default f16)",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """--mode, and the settings that only --mode aligned takes."""
    study = parser.add_argument_group(
        "for study",
        "SLERP between aligned layers in place of codes, with its settings as in a SPEC; needs -o",
    )
    study.add_argument("--mode", choices=("code", "aligned"), default="code", help="default: code")
    for name, what in SETTINGS.items():
        study.add_argument(f"--{name}", metavar=name[0].upper(), help=f"with --mode aligned: {what}")


def refuse_settings(args: argparse.Namespace) -> None:
    """Raises MiniCacheError for a setting that only --mode aligned takes."""
    for name in SETTINGS:
        if getattr(args, name) is not None:
            raise MiniCacheError(f"--{name} goes with --mode aligned")


def run(args: argparse.Namespace) -> int:
    for name in ("ratio", "max_kl", "budget", "ctx"):
        if getattr(args, name) is not None:
            raise MiniCacheError(f"--{name.replace('_', '-')} is for codes, not for --mode aligned")
    if args.output is None:
        raise MiniCacheError(
            "--mode aligned needs -o PLAN: such a plan is for study, and minicache='auto' does not look for it"
        )
    if args.thorough:
        raise MiniCacheError("--thorough is for codes, not for --mode aligned")
    names = (*SETTINGS, "window")
    given = [f"{name}={getattr(args, name)}" for name in names if getattr(args, name) is not None]
    settings = MiniCache.parse("slerp:" + ",".join(given))
    options = Options(
        texts=tuple(args.text or ()),
        # nothing is measured here, so chunks need not be longer than a window
        window=0,
        thorough=True,
        tokens=args.tokens,
        threads=args.threads or 0,
        gpu_layers=args.gpu_layers,
    )
    check_options(options)
    check_output(args.output)
    file = read_gguf(requested_model(args.model))

    from .alignment import align

    progress = Progress("calibrate")
    try:
        found = align(
            file,
            settings,
            args.output,
            paths=options.texts,
            n_tokens=options.n_token,
            threads=options.threads or threads_for(file),
            gpu_layers=options.gpu_layers,
            progress=progress,
        )
    finally:
        progress.close()
    show(json.dumps(found, indent=2) if args.json else aligned_table(found))
    return 0

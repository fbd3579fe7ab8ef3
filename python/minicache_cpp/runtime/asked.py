"""Options that `chat` and `serve` share: the cache and the size of the context."""

from __future__ import annotations

import argparse

from ..cache.settings import F16, SPEC_HELP, CacheSpec
from ..cache.size import n_cells
from ..host.notes import note
from ..modelfile.gguf_file import GGUFFile
from ..native.model_shape import model_shape

DEFAULT_CTX = 4096


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """The cache, where it is not to be the one of the model's plan."""
    cache = parser.add_argument_group("KV cache").add_mutually_exclusive_group()
    cache.add_argument("--config", metavar="SPEC", help=f"{SPEC_HELP}; default: this model's plan")
    cache.add_argument("--no-minicache", action="store_true", help="a plain f16 cache, for comparison")


def given_spec(args: argparse.Namespace) -> CacheSpec | None:
    """The cache that is asked for; None where the model's plan decides."""
    if args.no_minicache:
        return F16
    return CacheSpec.parse(args.config) if args.config not in (None, "auto") else None


def context_size(wanted: int | None, file: GGUFFile) -> int:
    """The cells of a context of so many tokens; None: the model's, at most DEFAULT_CTX."""
    trained = model_shape(file).n_ctx_train
    n_ctx = wanted or min(trained or DEFAULT_CTX, DEFAULT_CTX)
    if trained and n_ctx > trained:
        note(f"the model was trained for {trained} tokens; beyond them answers may turn to nonsense")
    return n_cells(n_ctx)

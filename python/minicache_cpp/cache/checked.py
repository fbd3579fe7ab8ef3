"""Caches that are asked for by name on a command line, and checked against a model before anything is built."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from ..modelfile.gguf_file import GGUFFile
from .plan_store import refuse_other_model
from .room import known_kv_bytes
from .settings import SPEC_HELP, CacheSpec


def add_config_option(parser: argparse.ArgumentParser, verb: str) -> None:
    """The caches that a command works with; `verb` says what it does with one."""
    parser.add_argument(
        "--config",
        action="append",
        metavar="SPEC",
        help=f"a cache to {verb}; may be repeated. SPEC: {SPEC_HELP}",
    )


def checked_specs(file: GGUFFile, specs: Iterable[CacheSpec]) -> list[CacheSpec]:
    """Returns each cache once.

    Raises MiniCacheError where a plan was made for another model, where settings name layers that this model does not
    have, and where its heads cannot be kept in a cache type.
    """
    found = list(dict.fromkeys(specs))
    refuse_other_models(found, file)
    for spec in found:
        known_kv_bytes(file, spec, n_ctx=1)
    return found


def refuse_other_models(specs: Iterable[CacheSpec], file: GGUFFile) -> None:
    """Raises MiniCacheError where one of the caches has a plan that was made for another model."""
    for spec in specs:
        if spec.plan_file is not None:
            refuse_other_model(spec.plan_file, file)

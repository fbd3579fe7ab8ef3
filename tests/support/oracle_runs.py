"""Runs of the same tokens through the library and through the oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oracle.cells import Token
from oracle.model import Config, Oracle
from support.bounds import MARGIN
from support.contexts import Context, Logits
from support.loaded import Loaded


def oracle_run(loaded: Loaded, config: Config, tokens: Sequence[Token]) -> tuple[Logits, float]:
    """The oracle's logits [n_tokens, n_vocab], and the smallest difference of distances that decided a choice."""
    oracle = Oracle(loaded.tiny, config)
    return oracle.decode(tokens), oracle.margin


def clear_cut(
    loaded: Loaded, config: Config, make: Callable[[int], list[Token]], least: float = MARGIN
) -> tuple[list[Token], Logits]:
    """The first of make(0), make(1), ... in which no choice is closer than `least`, and the oracle's logits."""
    for seed in range(40):
        tokens = make(seed)
        logits, margin = oracle_run(loaded, config, tokens)
        if margin > least:
            return tokens, logits
    raise AssertionError("every prompt has a choice that is too close")


def native(loaded: Loaded, config: Config, tokens: Sequence[Token], n_threads: int = 1) -> Logits:
    """The logits [n_tokens, n_vocab] of the library, in a new context."""
    with Context.of(loaded.model, config, n_threads=n_threads) as ctx:
        return ctx.decode(tokens)

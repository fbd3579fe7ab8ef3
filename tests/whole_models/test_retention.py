"""Which tokens are retained, on models whose merging loses something only at planted tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from oracle.cells import Token
from oracle.model import Config, Oracle
from support import tiny_models
from support.bounds import F16_BOUND, ROUNDING
from support.contexts import Context, Logits, nmse, run
from support.loaded import Loaded
from support.oracle_runs import native, oracle_run
from support.tiny_models import PLANTED, prompt


def planted_tokens(n_tokens: int, block: int, seed: int) -> list[Token]:
    """Random tokens, with one planted token somewhere in each block of cells."""
    rng = np.random.default_rng(seed)
    ids = prompt(n_tokens, seed)
    for start in range(0, n_tokens, block):
        ids[min(start + int(rng.integers(block)), n_tokens - 1)] = int(rng.choice(PLANTED))
    return run(ids)


def test_the_most_distant_tokens_are_retained(load: Callable[..., Loaded]) -> None:
    """Merging loses something only at planted tokens, so only the right rule gives the full cache."""
    loaded = load(tiny_models.planted_model, n_layer=8)
    config = Config(loaded.pairs, retain=0.05, pool_type="f16", n_ubatch=16)
    assert config.block == 20
    tokens = planted_tokens(200, config.block, seed=5)
    full = native(loaded, Config(n_ubatch=16), tokens)

    oracle = Oracle(loaded.tiny, config)
    oracle.decode(tokens)
    planted = {i for i, token in enumerate(tokens) if token.id in PLANTED}
    assert all(oracle.retained(pair) == planted for pair in loaded.pairs)

    with Context.of(loaded.model, config) as ctx:
        result = ctx.decode(tokens)
        assert ctx.report().retained == len(planted) * len(loaded.pairs)
    assert nmse(result, full) <= ROUNDING

    wrong, _ = oracle_run(loaded, replace(config, keep_most_similar=True), tokens)
    assert nmse(wrong, full) > 1e3 * ROUNDING
    without = native(loaded, replace(config, retain=0.0), tokens)
    assert nmse(without, full) > 1e3 * ROUNDING


def test_a_displaced_token_falls_back_to_its_merged_entry(load: Callable[..., Loaded]) -> None:
    """Of two planted tokens in one block, one is retained and the other merged; neither is lost."""
    loaded = load(tiny_models.planted_model, n_layer=8)
    config = Config(loaded.pairs, retain=0.05, pool_type="f16", n_ubatch=4)

    def two_in_one_block(seed: int) -> list[Token]:
        ids = prompt(60, seed)
        ids[3], ids[12], ids[27], ids[33] = PLANTED
        return run(ids)

    tokens, expected = clear_cut_apart(loaded, config, two_in_one_block)
    assert nmse(native(loaded, config, tokens), expected) <= F16_BOUND


def clear_cut_apart(
    loaded: Loaded, config: Config, make: Callable[[int], list[Token]]
) -> tuple[list[Token], Logits]:
    """Like `clear_cut`, for models whose ordinary tokens are all alike: only the retained planted ones matter."""
    tokens = make(0)
    oracle = Oracle(loaded.tiny, config)
    logits = oracle.decode(tokens)
    planted = {i for i, token in enumerate(tokens) if token.id in PLANTED}
    for pair in loaded.pairs:
        held = {cell for cell in oracle.retained(pair) if cell in planted}
        assert len(held) == 2  # of the four, which lie in two blocks
    return tokens, logits

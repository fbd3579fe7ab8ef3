"""What holds for a model with any cache: it agrees with the oracle, goes on after a restore, reuses its graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from oracle.model import Config, Oracle
from support.bounds import F16_BOUND, MARGIN
from support.contexts import Context, interleaved, nmse, repeated, run
from support.loaded import Loaded
from support.scenarios import Memory, Result
from support.tiny_models import prompt


def assert_matches_the_oracle(
    loaded: Loaded, config: Config, scenario: Callable[[Memory, int], Result], bound: float
) -> None:
    for seed in range(0, 400, 10):
        oracle = Oracle(loaded.tiny, config)
        expected = scenario(oracle, seed)
        if oracle.margin > MARGIN:
            break
    assert oracle.margin > MARGIN
    with Context.of(loaded.model, config) as ctx:
        for got, want in zip(scenario(ctx, seed), expected, strict=True):
            assert nmse(got, want) <= bound


def assert_a_state_goes_on(loaded: Loaded, config: Config, chunk: int) -> None:
    """Bit for bit, in another context that had something else in it; so many tokens are read at a time."""
    with Context.of(loaded.model, config) as ctx, Context.of(loaded.model, config) as other:
        ctx.decode(interleaved([prompt(60, 1), prompt(60, 2)]))
        state = ctx.state()
        tokens = interleaved([prompt(10, 3), prompt(10, 4)], first=60)
        expected = repeated(ctx.decode, tokens, chunk)
        other.decode(run(prompt(35, 5)))  # gone after the restore
        assert other.restore(state)
        assert np.array_equal(repeated(other.decode, tokens, chunk), expected)


def assert_a_sequence_goes_on(loaded: Loaded, config: Config, bound: float = F16_BOUND) -> None:
    """Beside another one that was there, and on other cells; a token at a time."""
    with Context.of(loaded.model, config) as ctx, Context.of(loaded.model, config) as other:
        ctx.decode(run(prompt(60, 1)))
        other.decode(run(prompt(35, 5), seq=1))
        assert other.restore_seq(ctx.seq_state(0), 0)
        tokens = run(prompt(10, 3), 60)
        assert nmse(repeated(other.decode, tokens, 1), repeated(ctx.decode, tokens, 1)) <= bound


def assert_graphs_are_reused(loaded: Loaded, config: Config) -> None:
    """Token by token, up to where the cells in use pass the next 256: what a GPU has captured is launched again."""
    sequences = [prompt(90, seed) for seed in range(config.n_seq_max)]
    with Context.of(loaded.model, config) as ctx:
        ctx.decode(interleaved([tokens[:20] for tokens in sequences]))
        before = ctx.n_reused()
        for i in range(20, 90):
            ctx.decode(interleaved([[tokens[i]] for tokens in sequences], first=i))
        assert ctx.n_reused() - before == 69  # all but the first

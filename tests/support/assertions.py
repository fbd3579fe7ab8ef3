"""What must hold whatever the cache: it agrees with the oracle, continues after a restore and reuses its graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def assert_a_state_continues(loaded: Loaded, config: Config, chunk: int) -> None:
    """A saved state continues bit for bit in another context, which held other tokens before.

    After the restore both contexts read `chunk` tokens at a time.
    """
    with Context.of(loaded.model, config) as ctx, Context.of(loaded.model, config) as other:
        ctx.decode(interleaved([prompt(60, 1), prompt(60, 2)]))
        state = ctx.state()
        tokens = interleaved([prompt(10, 3), prompt(10, 4)], first=60)
        expected = repeated(ctx.decode, tokens, chunk)
        other.decode(run(prompt(35, 5)))  # the restore replaces these tokens
        assert other.restore(state)
        assert np.array_equal(repeated(other.decode, tokens, chunk), expected)


def assert_a_sequence_continues(loaded: Loaded, config: Config, bound: float = F16_BOUND) -> None:
    """A saved sequence continues in a context that holds another sequence, on other cells, a token at a time."""
    with Context.of(loaded.model, config) as ctx, Context.of(loaded.model, config) as other:
        ctx.decode(run(prompt(60, 1)))
        other.decode(run(prompt(35, 5), seq=1))
        assert other.restore_seq(ctx.seq_state(0), 0)
        tokens = run(prompt(10, 3), 60)
        assert nmse(repeated(other.decode, tokens, 1), repeated(ctx.decode, tokens, 1)) <= bound


def assert_a_state_is_refused(loaded: Loaded, saved: Config, others: Sequence[Config]) -> None:
    """Contexts of other settings refuse the state of a context, and keep their own tokens."""
    with Context.of(loaded.model, saved) as ctx:
        ctx.decode(run(prompt(40)))
        state = ctx.state()
    for config in others:
        with Context.of(loaded.model, config) as other:
            other.decode(run(prompt(30, 1)))
            assert not other.restore(state)
            assert other.positions(0) == (0, 29)


def assert_graphs_are_reused(loaded: Loaded, config: Config) -> None:
    """Token by token each graph is reused until the cells in use pass a multiple of 256.

    A GPU then launches a captured graph again.
    """
    sequences = [prompt(90, seed) for seed in range(config.n_seq_max)]
    with Context.of(loaded.model, config) as ctx:
        ctx.decode(interleaved([tokens[:20] for tokens in sequences]))
        before = ctx.n_reused()
        for i in range(20, 90):
            ctx.decode(interleaved([[tokens[i]] for tokens in sequences], first=i))
        assert ctx.n_reused() - before == 69  # every token but the first

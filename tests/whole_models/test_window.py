"""The window: the latest tokens of each stream are kept exactly, beside merged and beside coded pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from oracle.model import Config, Oracle
from oracle.states import restore, save
from support import scenarios, tiny_models
from support.assertions import (
    assert_a_sequence_continues,
    assert_a_state_continues,
    assert_a_state_is_refused,
    assert_matches_the_oracle,
)
from support.bounds import CODE_BOUND, F16_BOUND, ROUNDING
from support.contexts import Context, nmse, run
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native, oracle_run
from support.plans import ALL_PAIRS, coded
from support.scenarios import Memory, Result
from support.tiny_models import prompt

SETTINGS = [
    Config(ALL_PAIRS, window=16),
    Config(ALL_PAIRS, window=16, retain=0.1),
    Config(ALL_PAIRS, window=5, retain=0.1, pool_type="f16"),
    Config(ALL_PAIRS, window=200, retain=0.05),
]


@pytest.mark.parametrize("n_ubatch", [1, 7, 64])
@pytest.mark.parametrize("config", SETTINGS, ids=lambda config: f"{config.window} {config.retain}")
@pytest.mark.parametrize("coded_pairs", [False, True])
def test_every_split_matches_the_oracle(
    random_model: Loaded, plan: Path, config: Config, n_ubatch: int, coded_pairs: bool
) -> None:
    """The ubatches are shorter and longer than the window."""
    config = replace(config, n_ubatch=n_ubatch)
    if coded_pairs:
        config = coded(random_model, config, plan)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(90, seed)))
    bound = CODE_BOUND if coded_pairs else F16_BOUND
    for n_threads in (1, 3):
        assert nmse(native(random_model, config, tokens, n_threads), expected) <= bound
    other = replace(config, window=config.n_exact + 1)
    assert (
        config.window > len(tokens)
        or nmse(oracle_run(random_model, other, tokens)[0], expected) > bound / 100
    )


@pytest.mark.parametrize("n_cells", [256, 512, 1024])
def test_the_window_of_a_plan_grows_with_the_context(random_model: Loaded, plan: Path, n_cells: int) -> None:
    """Where a 32nd of the context is more; that of directions does not."""
    config = Config(ALL_PAIRS, window=9, n_cells=n_cells, n_ubatch=7)
    for one, window in ((coded(random_model, config, plan), max(9, n_cells // 32)), (config, 9)):
        tokens, expected = clear_cut(random_model, one, lambda seed: run(prompt(90, seed)))
        with Context.of(random_model.model, one) as ctx:
            assert ctx.report().window == window
            assert nmse(ctx.decode(tokens), expected) <= (CODE_BOUND if one.codecs else F16_BOUND)


@pytest.mark.parametrize(("saved_at", "read_at"), [(256, 1024), (1024, 256)])
def test_a_state_goes_into_a_context_whose_plan_keeps_more_or_fewer_tokens(
    random_model: Loaded, plan: Path, saved_at: int, read_at: int
) -> None:
    """It keeps of the window what there is, and what there is room for."""
    saved, read = (
        coded(random_model, Config(ALL_PAIRS, window=9, n_cells=n_cells, n_ubatch=7), plan)
        for n_cells in (saved_at, read_at)
    )
    tokens = run(prompt(100, 5))
    oracles = Oracle(random_model.tiny, saved), Oracle(random_model.tiny, read)
    oracles[0].decode(tokens[:80])
    assert restore(oracles[1], save(oracles[0]))
    expected = oracles[1].decode(tokens[80:])
    with Context.of(random_model.model, saved) as ctx:
        ctx.decode(tokens[:80])
        state = ctx.state()
    with Context.of(random_model.model, read) as ctx:
        assert ctx.restore(state)
        assert nmse(ctx.decode(tokens[80:]), expected) <= CODE_BOUND


def test_a_window_over_the_context_is_the_full_cache(random_model: Loaded) -> None:
    tokens = run(prompt(100, 4))
    for n_ubatch in (1, 16):
        full = native(random_model, Config(n_ubatch=n_ubatch), tokens)
        config = Config(ALL_PAIRS, window=256, pool_type="f16", n_ubatch=n_ubatch)
        assert nmse(native(random_model, config, tokens), full) <= ROUNDING
        assert nmse(native(random_model, replace(config, window=8), tokens), full) > 1e2 * ROUNDING


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.take_turns,
        scenarios.copy_then_diverge,
        scenarios.copy_twice,
        scenarios.remove_the_end,
        scenarios.remove_and_reuse,
        scenarios.shift_context,
        scenarios.clear_and_start_again,
    ],
)
def test_operations_match_the_oracle(
    load: Callable[..., Loaded], scenario: Callable[[Memory, int], Result], unified: bool
) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    config = Config(loaded.pairs, window=24, retain=0.1, n_ubatch=16, n_seq_max=2, unified=unified)
    assert_matches_the_oracle(loaded, config, scenario, F16_BOUND)


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("coded_pairs", [False, True])
def test_a_saved_state_continues_bit_for_bit(
    random_model: Loaded, plan: Path, unified: bool, coded_pairs: bool
) -> None:
    config = Config(ALL_PAIRS, window=24, retain=0.1, n_ubatch=16, n_seq_max=2, unified=unified)
    if coded_pairs:
        config = coded(random_model, config, plan)
    assert_a_state_continues(random_model, config, 2)


def test_a_restored_sequence_keeps_its_window(random_model: Loaded) -> None:
    config = Config(ALL_PAIRS, window=24, n_ubatch=16, n_seq_max=2, unified=False)
    assert_a_sequence_continues(random_model, config)


def test_a_state_of_another_window_is_refused(random_model: Loaded) -> None:
    configs = [Config(ALL_PAIRS, window=window, n_ubatch=16) for window in (8, 9)]
    assert_a_state_is_refused(random_model, configs[0], configs[1:])

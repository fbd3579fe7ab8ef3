"""Saved and restored states of merged layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp.native import binding
from oracle.model import Config
from support.bounds import F16_BOUND, ROUNDING
from support.contexts import Context, interleaved, nmse, run
from support.loaded import Loaded
from support.plans import coded
from support.tiny_models import prompt

STATE = Config((), retain=0.05, n_ubatch=16, n_seq_max=2)


def state_config(loaded: Loaded, **changes: object) -> Config:
    return replace(STATE, groups=loaded.pairs, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
@pytest.mark.parametrize("unified", [True, False])
def test_a_saved_state_continues_bit_for_bit(random_model: Loaded, unified: bool, kind: str) -> None:
    config = state_config(random_model, unified=unified, type_k=kind, type_v=kind)
    with Context.of(random_model.model, config) as ctx, Context.of(random_model.model, config) as other:
        ctx.decode(interleaved([prompt(60, 1), prompt(60, 2)]))
        state = ctx.state()
        tokens = interleaved([prompt(30, 3), prompt(30, 4)], first=60)
        expected = ctx.decode(tokens)

        other.decode(run(prompt(35, 5)))  # the restore replaces these tokens
        assert other.restore(state)
        assert other.positions(0) == other.positions(1) == (0, 59)
        assert other.report().retained > 0
        assert np.array_equal(other.decode(tokens), expected)

        assert ctx.restore(state)  # also in the context that has gone on
        assert np.array_equal(ctx.decode(tokens), expected)


def test_a_state_fits_a_longer_context(random_model: Loaded) -> None:
    config = state_config(random_model)
    with (
        Context.of(random_model.model, config) as ctx,
        Context.of(random_model.model, replace(config, n_cells=512)) as longer,
    ):
        ctx.decode(run(prompt(100)))
        assert longer.restore(ctx.state())
        tokens = run(prompt(20, 1), 100)
        assert np.array_equal(longer.decode(tokens), ctx.decode(tokens))


def test_a_state_with_holes_agrees_with_the_plain_cache(parallel_model: Loaded) -> None:
    """Restored cells are moved together, so they share slots with other cells than before."""
    results = []
    for pairs in ((), parallel_model.pairs):
        config = replace(STATE, groups=pairs, pool_type="f16")
        with (
            Context.of(parallel_model.model, config) as ctx,
            Context.of(parallel_model.model, config) as other,
        ):
            ctx.decode(interleaved([prompt(60, 1), prompt(60, 2)]))
            ctx.seq_rm(0, 10, 31)
            assert other.restore(ctx.state())
            results.append(other.decode(interleaved([prompt(40, 3), prompt(40, 4)], first=60)))
    assert nmse(results[1], results[0]) <= ROUNDING


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("target", [0, 1])
def test_one_sequence_is_saved_and_restored(parallel_model: Loaded, unified: bool, target: int) -> None:
    """It replaces the tokens of the sequence of that number, its own or the other; the remaining sequence goes on."""
    results = []
    for pairs in ((), parallel_model.pairs):
        config = replace(STATE, groups=pairs, unified=unified, pool_type="f16")
        with Context.of(parallel_model.model, config) as ctx:
            ctx.decode(run(prompt(50, 1)))
            state = ctx.seq_state(0)
            ctx.decode(run(prompt(20, 2), 50) + run(prompt(33, 3), seq=1))
            assert ctx.restore_seq(state, target)
            assert ctx.positions(target) == (0, 49)
            assert ctx.positions(1 - target) == ((0, 32) if target == 0 else (0, 69))
            results.append(
                np.concatenate(
                    [
                        ctx.decode(run(prompt(30, 4), 50, seq=target)),
                        ctx.decode(run(prompt(30, 5), ctx.positions(1 - target)[1] + 1, seq=1 - target)),
                    ]
                )
            )
    assert nmse(results[1], results[0]) <= ROUNDING


def test_a_restored_sequence_continues_bit_for_bit(random_model: Loaded) -> None:
    """A sequence with a stream of its own gets the same cells, and is the same to the last bit."""
    config = state_config(random_model, unified=False)
    tokens = run(prompt(30, 2), 70)
    with Context.of(random_model.model, config) as ctx, Context.of(random_model.model, config) as other:
        ctx.decode(run(prompt(70, 1)))
        state = ctx.seq_state(0)
        expected = ctx.decode(tokens)
        assert other.restore_seq(state, 1)
        assert np.array_equal(other.decode([replace(token, seq=1) for token in tokens]), expected)
        assert ctx.restore_seq(state, 0)
        assert np.array_equal(ctx.decode(tokens), expected)


def test_restoring_one_sequence_leaves_the_other(random_model: Loaded) -> None:
    config = state_config(random_model, unified=False)
    with Context.of(random_model.model, config) as ctx, Context.of(random_model.model, config) as untouched:
        for one in (ctx, untouched):
            one.decode(interleaved([prompt(50, 1), prompt(50, 2)]))
        assert ctx.restore_seq(ctx.seq_state(0), 0)
        tokens = run(prompt(20, 3), 50, seq=1)
        assert np.array_equal(ctx.decode(tokens), untouched.decode(tokens))


def other_configurations(loaded: Loaded) -> dict[str, Config]:
    config = state_config(loaded)
    return {
        "t": replace(config, t=0.5),
        "retain": replace(config, retain=0.1),
        "no pool": replace(config, retain=0.0),
        "pool type": replace(config, pool_type="f16"),
        "type of K": replace(config, type_k="q8_0"),
        "type of V": replace(config, type_v="bf16"),
        "pairs": replace(config, groups=((0, 1), (2, 3))),
        "one pair": replace(config, groups=loaded.pairs[:1]),
        "plain": replace(config, groups=()),
        "streams": replace(config, unified=False),
    }


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "t",
        "retain",
        "no pool",
        "pool type",
        "type of K",
        "type of V",
        "pairs",
        "one pair",
        "plain",
        "streams",
    ],
)
def test_a_state_of_another_configuration_is_refused(parallel_model: Loaded, name: str, whole: bool) -> None:
    """The refusal changes nothing, to the last bit."""
    config = state_config(parallel_model)
    with (
        Context.of(parallel_model.model, config) as ctx,
        Context.of(parallel_model.model, config) as untouched,
        Context.of(parallel_model.model, other_configurations(parallel_model)[name]) as foreign,
    ):
        foreign.decode(run(prompt(40, 9)))
        for one in (ctx, untouched):
            one.decode(interleaved([prompt(45, 1), prompt(45, 2)]))
        if whole:
            assert not ctx.restore(foreign.state())
        else:
            assert not ctx.restore_seq(foreign.seq_state(0), 0)
        assert_untouched(ctx, untouched)


def assert_untouched(ctx: Context, untouched: Context) -> None:
    assert ctx.positions(0) == untouched.positions(0)
    assert ctx.positions(1) == untouched.positions(1)
    tokens = interleaved([prompt(20, 3), prompt(20, 4)], first=ctx.positions(0)[1] + 1)
    assert np.array_equal(ctx.decode(tokens), untouched.decode(tokens))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_state_is_refused(random_model: Loaded, part: float, whole: bool) -> None:
    config = state_config(random_model)
    with Context.of(random_model.model, config) as ctx, Context.of(random_model.model, config) as untouched:
        for one in (ctx, untouched):
            one.decode(interleaved([prompt(45, 1), prompt(45, 2)]))
        if whole:
            state = ctx.state()
            assert not ctx.restore(state[: int(part * len(state))])
        else:
            state = ctx.seq_state(0)
            assert not ctx.restore_seq(state[: int(part * len(state))], 0)
        assert_untouched(ctx, untouched)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_a_damaged_state_is_refused(random_model: Loaded, place: float, whole: bool) -> None:
    """One bit is wrong: at the start, in the rows, in the retained tokens or at the end."""
    config = state_config(random_model)
    with Context.of(random_model.model, config) as ctx, Context.of(random_model.model, config) as untouched:
        for one in (ctx, untouched):
            one.decode(interleaved([prompt(45, 1), prompt(45, 2)]))
        state = bytearray(ctx.state() if whole else ctx.seq_state(0))
        state[int(place * (len(state) - 1))] ^= 1
        assert not (ctx.restore(bytes(state)) if whole else ctx.restore_seq(bytes(state), 0))
        assert_untouched(ctx, untouched)


def test_a_merged_state_is_refused_by_a_plain_context(random_model: Loaded) -> None:
    config = state_config(random_model)
    with (
        Context.of(random_model.model, config) as ctx,
        Context.of(random_model.model, replace(config, groups=())) as plain,
    ):
        ctx.decode(run(prompt(45)))
        assert not plain.restore(ctx.state())


def test_a_state_is_smaller_than_the_plain_one(random_model: Loaded) -> None:
    """Merged layers are saved in their merged form."""
    sizes = []
    for pairs in ((), ((0, 1), (2, 3), (4, 5))):
        with Context.of(random_model.model, replace(STATE, groups=pairs)) as ctx:
            ctx.decode(run(prompt(200)))
            sizes.append(len(ctx.seq_state(0)))
    assert sizes[1] < 0.75 * sizes[0]


def copy_then_save(a: Context, b: Context) -> int:
    a.decode(run(prompt(30)))
    a.seq_cp(0, 1)
    assert binding.set_state(b.handle, binding.get_state(a.handle, 1), 1)
    return 30


def copy_then_restore(a: Context, b: Context) -> int:
    b.decode(run(prompt(30, 5), seq=1))
    a.decode(run(prompt(30)))
    a.seq_cp(0, 1)
    assert binding.set_state(a.handle, binding.get_state(b.handle, 1), 1)
    return 30


def shift_then_save(a: Context, b: Context) -> int:
    a.decode(run(prompt(30), seq=1))
    a.seq_rm(1, 0, 10)
    a.seq_add(1, 10, -1, -10)
    assert binding.set_state(b.handle, binding.get_state(a.handle, 1), 1)
    return 20


def copy_and_clear_then_restore(a: Context, b: Context) -> int:
    b.decode(interleaved([prompt(30, 5), prompt(30, 6)]))
    a.decode(run(prompt(30)))
    a.seq_cp(0, 1)
    binding.clear(a.handle)
    assert binding.set_state(a.handle, binding.get_state(b.handle))
    return 30


@pytest.mark.parametrize("kind", ["plain", "slerp", "codes"])
@pytest.mark.parametrize(
    "scenario", [copy_then_save, copy_then_restore, shift_then_save, copy_and_clear_then_restore]
)
def test_what_waits_for_the_next_batch_is_applied_before(
    random_model: Loaded, tmp_path: Path, scenario: Callable[[Context, Context], int], kind: str
) -> None:
    """llama.cpp leaves shifts and copies of streams for the next batch, where states and clearing come between."""
    config = Config(n_ubatch=16, n_seq_max=2, unified=False)
    if kind == "slerp":
        config = replace(config, groups=random_model.pairs, retain=0.1)
    if kind == "codes":
        config = coded(random_model, replace(config, groups=((0, 1), (2, 3))), tmp_path / "plan.gguf")
    with Context.of(random_model.model, config) as a, Context.of(random_model.model, config) as b:
        tokens = run(prompt(5, 1), scenario(a, b), seq=1)
        assert nmse(b.decode(tokens), a.decode(tokens)) <= F16_BOUND

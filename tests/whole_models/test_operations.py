"""Invariant I3: sequence operations work on merged layers as they do on plain ones.

Each scenario runs on a MiniCache context and on a plain context of the same type, with a model that loses nothing by
merging, and both must agree. It also runs on a random model against the oracle, which follows every cell and slot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oracle.model import Config
from support import tiny_models
from support.assertions import assert_graphs_are_reused, assert_matches_the_oracle
from support.bounds import F16_BOUND, Q8_BOUND, QUANTIZED_BOUND, ROUNDING
from support.contexts import Context, Logits, nmse, run
from support.loaded import Loaded
from support.plans import coded
from support.scenarios import (
    CASES,
    Memory,
    Result,
    copy_twice,
    divide_positions,
    remove_and_reuse,
    shift_and_shift_back,
    shift_context,
    shift_one_of_two,
)
from support.tiny_models import prompt


@pytest.mark.parametrize(("kind", "bound"), [("f16", ROUNDING), ("q8_0", Q8_BOUND)])
@pytest.mark.parametrize(("scenario", "unified"), CASES)
def test_operations_agree_with_the_plain_cache(
    load: Callable[..., Loaded],
    scenario: Callable[[Memory, int], Result],
    unified: bool,
    kind: str,
    bound: float,
) -> None:
    parallel_model = load(tiny_models.parallel_model, n_layer=8, head_size=64)
    plain = Config(type_k=kind, type_v=kind, pool_type=kind, n_ubatch=16, n_seq_max=2, unified=unified)
    merged = replace(plain, groups=parallel_model.pairs, retain=0.05)
    with Context.of(parallel_model.model, plain) as a, Context.of(parallel_model.model, merged) as b:
        for expected, result in zip(scenario(a, 1), scenario(b, 1), strict=True):
            assert nmse(result, expected) <= bound


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
@pytest.mark.parametrize(("scenario", "unified"), CASES)
def test_operations_match_the_oracle(
    load: Callable[..., Loaded], scenario: Callable[[Memory, int], Result], unified: bool, kind: str
) -> None:
    # quantized rows of this head size go through the Hadamard rotation
    loaded = load(tiny_models.random_model, head_size=64)
    config = Config(
        loaded.pairs, retain=0.1, type_k=kind, type_v=kind, n_ubatch=16, n_seq_max=2, unified=unified
    )
    assert_matches_the_oracle(loaded, config, scenario, F16_BOUND if kind == "f16" else QUANTIZED_BOUND)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "refact"])
@pytest.mark.parametrize("scenario", [shift_context, shift_one_of_two, copy_twice, remove_and_reuse])
def test_operations_match_the_oracle_where_every_layer_is_merged(
    load: Callable[..., Loaded], scenario: Callable[[Memory, int], Result], arch: str
) -> None:
    """Nothing is left to the base class then. With ALiBi (refact) there are positions, but K is not turned."""
    loaded = load(tiny_models.random_model, arch=arch, n_layer=4)
    config = Config(((0, 1), (2, 3)), retain=0.1, n_ubatch=16, n_seq_max=2, unified=False)
    assert_matches_the_oracle(loaded, config, scenario, F16_BOUND)


@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("scenario", [shift_context, shift_and_shift_back, divide_positions])
def test_quantized_heads_without_rotation_are_shifted(
    load: Callable[..., Loaded], scenario: Callable[[Memory, int], Result], start: float
) -> None:
    """Upstream's Hadamard rotation does not cover these head sizes, and without our patch it crashes on them."""
    loaded = load(tiny_models.random_model, head_size=32)
    pairs = tuple(tiny_models.default_pairs(loaded.tiny.shape.n_layer, start))
    config = Config(pairs, retain=0.1, type_k="q8_0", type_v="q8_0", n_ubatch=16)
    assert_matches_the_oracle(loaded, config, scenario, QUANTIZED_BOUND)


@pytest.mark.parametrize("kind", ["plain", "slerp", "codes"])
@pytest.mark.parametrize(("n_seq", "unified"), [(1, True), (2, True), (2, False)])
def test_graphs_are_reused(
    random_model: Loaded, tmp_path: Path, kind: str, n_seq: int, unified: bool
) -> None:
    config = Config(n_seq_max=n_seq, unified=unified)
    if kind == "slerp":
        config = replace(config, groups=random_model.pairs, retain=0.1)
    if kind == "codes":
        base = replace(config, groups=((0, 1), (2, 3, 4, 5)), retain=0.1, window=9)
        config = coded(random_model, base, tmp_path / "plan.gguf")
    assert_graphs_are_reused(random_model, config)


def test_a_full_cache_is_refused_and_stays_as_it_was(random_model: Loaded) -> None:
    config = Config(random_model.pairs, retain=0.05, n_ubatch=64)
    with Context.of(random_model.model, config) as ctx, Context.of(random_model.model, config) as untouched:
        for one in (ctx, untouched):
            one.decode(run(prompt(250)))
        with pytest.raises(RuntimeError, match="returned 1"):
            ctx.decode(run(prompt(7, 1), 250))
        assert ctx.positions(0) == (0, 249)
        tokens = run(prompt(6, 2), 250)
        assert np.array_equal(ctx.decode(tokens), untouched.decode(tokens))


def test_results_do_not_depend_on_threads_or_history(random_model: Loaded) -> None:
    """The same tokens give the same bits in two fresh contexts and in one that was used and cleared."""
    config = Config(random_model.pairs, retain=0.05, n_ubatch=16)
    tokens = run(prompt(100, 1))

    def decoded(before: int) -> Logits:
        with Context.of(random_model.model, config) as ctx:
            if before:
                ctx.decode(run(prompt(before, 2)))
                ctx.clear()
            return ctx.decode(tokens)

    assert np.array_equal(decoded(0), decoded(0))
    assert np.array_equal(decoded(0), decoded(130))

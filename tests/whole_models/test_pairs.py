"""Pairs merged by SLERP: whole models against the oracle, which splits the same tokens into the same ubatches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from oracle.model import Config, Oracle
from oracle.quant import TYPES
from support import tiny_models
from support.bounds import F16_BOUND, QUANTIZED_BOUND, ROUNDING
from support.contexts import Context, interleaved, nmse, repeated, run
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native, oracle_run
from support.tiny_models import prompt


@pytest.mark.parametrize("n_ubatch", [1, 7, 64, 512])
@pytest.mark.parametrize(("n_seq", "unified"), [(1, True), (1, False), (4, True), (4, False)])
def test_every_split_matches_the_oracle(
    random_model: Loaded, n_ubatch: int, n_seq: int, unified: bool
) -> None:
    config = Config(
        random_model.pairs, retain=0.05, n_ubatch=n_ubatch, n_seq_max=n_seq, unified=unified, n_cells=256
    )
    length = 130 if n_seq == 1 else 40
    tokens, expected = clear_cut(
        random_model, config, lambda seed: interleaved([prompt(length, 10 * seed + i) for i in range(n_seq)])
    )
    for n_threads in (1, 2) if n_ubatch == 64 else (1,):
        assert nmse(native(random_model, config, tokens, n_threads), expected) <= F16_BOUND


def test_the_bound_excludes_mistakes(random_model: Loaded) -> None:
    """An implementation that makes one of these mistakes is far outside the bound of the test above."""
    config = Config(random_model.pairs, retain=0.05, n_ubatch=7)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(130, seed)))
    assert nmse(native(random_model, config, tokens), expected) <= F16_BOUND
    mistakes = {
        "nothing merged": replace(config, groups=()),
        "nothing retained": replace(config, retain=0.0),
        "the most similar retained": replace(config, keep_most_similar=True),
        "another t": replace(config, t=0.5),
        "another pair": replace(config, groups=((4, 5),)),
        "another split": replace(config, n_ubatch=8),
    }
    for name, wrong in mistakes.items():
        assert nmse(oracle_run(random_model, wrong, tokens)[0], expected) > 20 * F16_BOUND, name


def test_prompt_then_decode(random_model: Loaded) -> None:
    """A prompt and then one token at a time, as in a chat, is another split of the same tokens."""
    config = Config(random_model.pairs, retain=0.05, n_ubatch=64)
    tokens = run(prompt(140, 1))
    oracle = Oracle(random_model.tiny, config)
    with Context.of(random_model.model, config) as ctx:
        for decode in (ctx.decode, oracle.decode):
            decode(tokens[:100])
        assert (
            nmse(repeated(ctx.decode, tokens[100:], 1), repeated(oracle.decode, tokens[100:], 1)) <= F16_BOUND
        )


@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_longer_context_matches_the_oracle(random_model: Loaded, n_threads: int) -> None:
    """The context is so long that the graph grows and that threads share the cells of one query."""
    config = Config(random_model.pairs, retain=0.05, n_ubatch=128, n_cells=1024)
    tokens, _ = clear_cut(random_model, config, lambda seed: run(prompt(750, seed)))
    oracle = Oracle(random_model.tiny, config)
    with Context.of(random_model.model, config, n_threads=n_threads) as ctx:
        for part, chunk in ((tokens[:730], 730), (tokens[730:], 1)):
            result, expected = (repeated(decode, part, chunk) for decode in (ctx.decode, oracle.decode))
            assert nmse(result, expected) <= F16_BOUND


@pytest.mark.parametrize("pool_type", ["f16", "q8_0", "cache"])
@pytest.mark.parametrize("head_size", [32, 64])
@pytest.mark.parametrize("kind", TYPES)
def test_cache_types_match_the_oracle(
    load: Callable[..., Loaded], kind: str, head_size: int, pool_type: str
) -> None:
    """Heads of 64 go through upstream's Hadamard rotation, heads of 32 do not. Every layer is merged."""
    loaded = load(tiny_models.random_model, head_size=head_size, n_layer=4)
    config = Config(((0, 1), (2, 3)), retain=0.1, n_ubatch=7, type_k=kind, type_v=kind, pool_type=pool_type)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(60, seed)))
    bound = F16_BOUND if kind in ("f16", "bf16") else QUANTIZED_BOUND
    assert nmse(native(loaded, config, tokens), expected) <= bound


@pytest.mark.parametrize(("type_k", "type_v"), [("q8_0", "q4_0"), ("f16", "q5_1"), ("iq4_nl", "bf16")])
def test_types_of_k_and_v_are_independent(random_model: Loaded, type_k: str, type_v: str) -> None:
    config = Config(random_model.pairs, retain=0.05, n_ubatch=16, type_k=type_k, type_v=type_v)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(80, seed)))
    result = native(random_model, config, tokens)
    assert nmse(result, expected) <= QUANTIZED_BOUND
    assert nmse(
        oracle_run(random_model, replace(config, type_k=type_v, type_v=type_k), tokens)[0], result
    ) > nmse(result, expected)


@pytest.mark.parametrize("arch", ["qwen2", "refact"])
def test_other_architectures_match_the_oracle(load: Callable[..., Loaded], arch: str) -> None:
    """qwen2 has biases and RoPE over halves, refact has ALiBi and no RoPE."""
    loaded = load(tiny_models.random_model, arch=arch)
    config = Config(loaded.pairs, retain=0.05, n_ubatch=16)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(100, seed)))
    assert nmse(native(loaded, config, tokens), expected) <= F16_BOUND


@pytest.mark.parametrize(
    "config",
    [
        Config(((0, 1), (2, 3), (4, 5)), retain=0.05),
        Config(((1, 2), (4, 5)), retain=0.2),
        Config(((0, 1),), t=0.0, retain=0.0),
        Config(((3, 4),), t=1.0, retain=0.0),
        Config(((2, 3), (4, 5)), retain=0.5, pool_type="f16"),
        Config(((2, 3), (4, 5)), retain=1.0),
        Config(((2, 3),), retain=0.004),
    ],
    ids=lambda config: f"{config.groups} t={config.t} retain={config.retain}",
)
def test_settings_match_the_oracle(random_model: Loaded, config: Config) -> None:
    config = replace(config, n_ubatch=16)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(90, seed)))
    result = native(random_model, config, tokens)
    assert nmse(result, expected) <= F16_BOUND


def test_a_prompt_of_one_ubatch_is_the_full_cache(random_model: Loaded) -> None:
    tokens = run(prompt(200, 3))
    merged = native(random_model, Config(random_model.pairs, retain=0.0), tokens)
    assert nmse(merged, native(random_model, Config(), tokens)) <= ROUNDING

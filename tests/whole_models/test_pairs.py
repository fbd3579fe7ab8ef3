"""Pairs merged by SLERP: whole models against the oracle, which splits the same tokens into the same ubatches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from oracle.cells import Token
from oracle.model import Config, Oracle
from oracle.quant import TYPES
from support import tiny_models
from support.bounds import F16_BOUND, QUANTIZED_BOUND, ROUNDING
from support.contexts import Context, Logits, interleaved, nmse, repeated, run
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native, oracle_run
from support.tiny_models import PLANTED, prompt

#
# against the oracle
#


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


#
# models that lose nothing
#


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("retain", [0.0, 0.05])
def test_parallel_layers_equal_the_full_cache_in_every_split(
    load: Callable[..., Loaded], equal: bool, retain: float
) -> None:
    loaded = load(tiny_models.parallel_model, n_layer=8, equal=equal)
    sequences = [prompt(60, i) for i in range(4)]
    full = {
        n_seq: native(loaded, Config(n_seq_max=n_seq), interleaved(sequences[:n_seq])) for n_seq in (1, 4)
    }
    for n_seq, unified in ((1, True), (4, True), (4, False)):
        for n_ubatch in (1, 7, 64, 512):
            config = Config(
                loaded.pairs,
                retain=retain,
                pool_type="f16",
                n_ubatch=n_ubatch,
                n_seq_max=n_seq,
                unified=unified,
            )
            result = native(loaded, config, interleaved(sequences[:n_seq]))
            assert nmse(result, full[n_seq]) <= ROUNDING, (n_seq, unified, n_ubatch)


def test_parallel_layers_have_different_magnitudes(parallel_model: Loaded) -> None:
    """Otherwise the test above would not notice magnitudes that are lost or swapped."""
    config = Config(parallel_model.pairs, n_ubatch=7)
    oracle = Oracle(parallel_model.tiny, config)
    oracle.decode(run(prompt(30)))
    for pair in oracle.groups.values():
        mag = pair.mag[0, :30]
        assert np.median(mag[:, 0] / mag[:, 1]) > 1.1
        assert max(max(distance) for distance in pair.distances) < 1e-4


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_retaining_every_token_is_the_full_cache(
    load: Callable[..., Loaded], arch: str, start: float
) -> None:
    loaded = load(tiny_models.random_model, arch=arch)
    pairs = tuple(tiny_models.default_pairs(loaded.tiny.shape.n_layer, start))
    tokens = run(prompt(100, 4))
    full = native(loaded, Config(n_ubatch=16), tokens)
    everything = native(loaded, Config(pairs, retain=1.0, pool_type="f16", n_ubatch=16), tokens)
    assert nmse(everything, full) <= ROUNDING
    nothing = native(loaded, Config(pairs, retain=0.0, n_ubatch=16), tokens)
    assert nmse(nothing, full) > 1e3 * ROUNDING


#
# retention
#


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


#
# sequences
#


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("merged", [True, False])
def test_sequences_never_see_each_other(random_model: Loaded, unified: bool, merged: bool) -> None:
    """Other tokens in other sequences change nothing, to the last bit.

    In a unified cache neighbouring cells share a slot whichever sequence they belong to. There the choice of retained
    tokens, and nothing else, may depend on other sequences.
    """
    pairs = random_model.pairs if merged else ()
    config = Config(pairs, retain=0.0 if unified else 0.1, n_ubatch=16, n_seq_max=4, unified=unified)
    first = prompt(40, 6)
    results = []
    for seed in (7, 8):
        tokens = interleaved([first, *(prompt(40, 10 * seed + i) for i in range(3))])
        results.append(
            native(random_model, config, tokens)[[i for i, token in enumerate(tokens) if token.seq == 0]]
        )
    assert np.array_equal(results[0], results[1])


def test_sequences_with_shared_slots_match_the_oracle(random_model: Loaded) -> None:
    """In a unified cache the tokens of one sequence displace retained ones of another as the oracle says."""
    config = Config(random_model.pairs, retain=0.1, n_ubatch=16, n_seq_max=4)
    lengths = (10, 25, 50, 60)

    def make(seed: int) -> list[Token]:
        tokens = [token for i, n in enumerate(lengths) for token in run(prompt(n, 10 * seed + i), seq=i)]
        return sorted(tokens, key=lambda token: (token.pos // 5, token.seq))

    tokens, expected = clear_cut(random_model, config, make)
    assert nmse(native(random_model, config, tokens), expected) <= F16_BOUND


def test_tokens_of_uneven_sequences_per_stream(random_model: Loaded) -> None:
    config = Config(random_model.pairs, retain=0.1, n_ubatch=16, n_seq_max=3, unified=False)

    def make(seed: int) -> list[Token]:
        return [token for i, n in enumerate((5, 40, 23)) for token in run(prompt(n, 10 * seed + i), seq=i)]

    tokens, expected = clear_cut(random_model, config, make)
    assert nmse(native(random_model, config, tokens), expected) <= F16_BOUND

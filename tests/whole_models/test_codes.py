"""Pairs kept as shared codes: whole models against the oracle, through sequence operations, saved and restored."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from minicache_cpp import MiniCache
from minicache_cpp.cache import contexts
from minicache_cpp.native import binding
from oracle.code import Head, Layout, Part
from oracle.model import Config
from support import scenarios, tiny_models
from support.assertions import assert_a_state_is_refused, assert_matches_the_oracle
from support.bounds import CODE_BOUND, F16_BOUND, MIXED_BOUND
from support.code_arrays import OF_FOUR_HEADS
from support.contexts import Context, interleaved, nmse, run
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native, oracle_run
from support.plans import ALL_PAIRS, LAYOUTS, coded, refusal, write_plan
from support.scenarios import CASES, Memory, Result
from support.tiny_models import prompt

# of the two KV heads of a pair of layers, in plans of tiny models
UNITS_K, UNITS_V = ([n for layout in heads for n in layout.units] for heads in LAYOUTS[64])


@pytest.mark.parametrize("n_ubatch", [1, 7, 64])
@pytest.mark.parametrize(("n_seq", "unified"), [(1, True), (4, True), (4, False)])
def test_every_split_matches_the_oracle(
    random_model: Loaded, plan: Path, n_ubatch: int, n_seq: int, unified: bool
) -> None:
    base = Config(ALL_PAIRS, retain=0.05, n_ubatch=n_ubatch, n_seq_max=n_seq, unified=unified)
    config = coded(random_model, base, plan)
    length = 100 if n_seq == 1 else 40
    tokens, expected = clear_cut(
        random_model, config, lambda seed: interleaved([prompt(length, 10 * seed + i) for i in range(n_seq)])
    )
    for n_threads in (1, 2):
        assert nmse(native(random_model, config, tokens, n_threads), expected) <= CODE_BOUND


def test_the_bound_excludes_mistakes(random_model: Loaded, plan: Path) -> None:
    config = coded(random_model, Config(ALL_PAIRS, n_ubatch=7), plan)
    tokens = run(prompt(100))
    expected, _ = oracle_run(random_model, config, tokens)
    assert nmse(native(random_model, config, tokens), expected) <= CODE_BOUND
    longer = tuple(
        replace(one, v=one.v.changed(lambda head: replace(head, mag=head.mag * [1, 2])))
        for one in config.codecs
    )
    swapped = tuple(replace(one, v=Part(one.v.heads[::-1])) for one in config.codecs)
    mistakes = {
        "nothing coded": replace(config, groups=(), codecs=()),
        "other steps of magnitudes": replace(config, codecs=longer),
        "the codecs of another head": replace(config, codecs=swapped),
        "the codecs of another pair": replace(config, codecs=config.codecs[::-1]),
        "another split": replace(config, n_ubatch=8),
    }
    for name, wrong in mistakes.items():
        assert nmse(oracle_run(random_model, wrong, tokens)[0], expected) > 2 * CODE_BOUND, name


@pytest.mark.parametrize("arch", ["llama", "qwen2", "refact"])
@pytest.mark.parametrize("rope_block", [0, 1, 16, 64])
def test_architectures_and_blocks_match_the_oracle(
    load: Callable[..., Loaded], plan: Path, arch: str, rope_block: int
) -> None:
    """With every layer coded: RoPE over neighbours, over halves, and no RoPE."""
    loaded = load(tiny_models.random_model, arch=arch, n_layer=4)
    config = coded(loaded, Config(((0, 1), (2, 3)), retain=0.1, n_ubatch=16), plan, rope_block=rope_block)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(100, seed), 37))
    assert nmse(native(loaded, config, tokens), expected) <= CODE_BOUND


@pytest.mark.parametrize(("type_k", "type_v"), [("q8_0", "q4_0"), ("f16", "q8_0"), ("q8_0", "bf16")])
def test_coded_beside_quantized_layers(
    load: Callable[..., Loaded], plan: Path, type_k: str, type_v: str
) -> None:
    """Upstream rotates q, k and v of all layers where the cache types are quantized; codes use no rotation."""
    loaded = load(tiny_models.random_model, head_size=64)
    base = Config(loaded.pairs, retain=0.1, n_ubatch=16, type_k=type_k, type_v=type_v)
    config = coded(loaded, base, plan)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(80, seed)))
    assert nmse(native(loaded, config, tokens), expected) <= MIXED_BOUND


def test_wide_codes_are_the_full_cache(random_model: Loaded, plan: Path) -> None:
    """8 bits for every number lose next to nothing, at any position."""
    full = Layout((4, 0, 0, 0, 0, 0, 0))
    config = coded(random_model, Config(random_model.pairs, n_ubatch=8), plan, layouts=([full], [full]))
    for first in (0, 30000):
        tokens = run(prompt(100), first)
        with Context.of(random_model.model, Config(n_ubatch=8)) as ctx:
            expected = ctx.decode(tokens)
        assert nmse(native(random_model, config, tokens), expected) <= 1e-3


@pytest.mark.parametrize("heads", OF_FOUR_HEADS)
def test_heads_of_layouts_of_their_own_match_the_oracle(
    load: Callable[..., Loaded], plan: Path, heads: str
) -> None:
    loaded = load(tiny_models.random_model, n_layer=4, n_head_kv=4, head_size=64)
    base = Config(((0, 1), (2, 3)), retain=0.1, window=5, n_ubatch=16)
    config = coded(loaded, base, plan, layouts=OF_FOUR_HEADS[heads])
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(80, seed)))
    for n_threads in (1, 2):
        assert nmse(native(loaded, config, tokens, n_threads), expected) <= CODE_BOUND


@pytest.mark.parametrize(("scenario", "unified"), CASES)
def test_operations_match_the_oracle(
    load: Callable[..., Loaded],
    plan: Path,
    scenario: Callable[[Memory, int], Result],
    unified: bool,
) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    base = Config(ALL_PAIRS, retain=0.1, n_ubatch=16, n_seq_max=2, unified=unified)
    if scenario is scenarios.divide_positions:
        # where positions are divided, upstream turns retained K the other way
        base = replace(base, retain=0.0)
    assert_matches_the_oracle(loaded, coded(loaded, base, plan), scenario, CODE_BOUND)


@pytest.mark.parametrize("scenario", [scenarios.shift_context, scenarios.copy_then_diverge])
def test_operations_beside_plain_layers(
    random_model: Loaded, plan: Path, scenario: Callable[[Memory, int], Result]
) -> None:
    config = coded(random_model, Config(random_model.pairs, retain=0.1, n_ubatch=16, n_seq_max=2), plan)
    assert_matches_the_oracle(random_model, config, scenario, MIXED_BOUND)


def test_a_shift_decodes_and_encodes_nothing(load: Callable[..., Loaded], plan: Path) -> None:
    """Shifting there and back leaves the cache as it was, to the last bit, because only bases move."""
    loaded = load(tiny_models.random_model, n_layer=4)
    config = coded(loaded, Config(((0, 1), (2, 3)), n_ubatch=16), plan)
    with Context.of(loaded.model, config) as ctx, Context.of(loaded.model, config) as untouched:
        for one in (ctx, untouched):
            one.decode(run(prompt(60)))
        ctx.seq_add(0, 0, -1, 1000)
        ctx.decode(run(prompt(1, 1), 1060))
        ctx.seq_rm(0, 1060, -1)
        ctx.seq_add(0, 0, -1, -1000)
        tokens = run(prompt(20, 2), 60)
        assert np.array_equal(ctx.decode(tokens), untouched.decode(tokens))


@pytest.mark.parametrize("unified", [True, False])
def test_a_saved_state_continues_bit_for_bit(random_model: Loaded, plan: Path, unified: bool) -> None:
    base = Config(random_model.pairs, retain=0.05, n_ubatch=16, n_seq_max=2, unified=unified)
    config = coded(random_model, base, plan)
    with Context.of(random_model.model, config) as ctx, Context.of(random_model.model, config) as other:
        ctx.decode(interleaved([prompt(60, 1), prompt(60, 2)]))
        ctx.seq_add(1, 0, -1, 5)
        ctx.decode(run(prompt(1, 9), 65, seq=1))
        state = ctx.state()
        tokens = [*run(prompt(10, 3), 60), *run(prompt(10, 4), 66, seq=1)]
        expected = ctx.decode(tokens)

        other.decode(run(prompt(35, 5)))  # the restore replaces these tokens
        assert other.restore(state)
        assert np.array_equal(other.decode(tokens), expected)


@pytest.mark.parametrize("unified", [True, False])
def test_a_restored_sequence_continues(random_model: Loaded, plan: Path, unified: bool) -> None:
    """The sequence takes cells that had other positions; its bases are saved with it."""
    config = coded(random_model, Config(random_model.pairs, n_ubatch=16, n_seq_max=2, unified=unified), plan)
    with Context.of(random_model.model, config) as ctx, Context.of(random_model.model, config) as other:
        ctx.decode(interleaved([prompt(60, 1), prompt(60, 2)]))
        ctx.seq_add(1, 0, -1, 5)
        other.decode(run(prompt(35, 5)))
        tokens = run(prompt(10, 4), 65, seq=1)
        ctx.decode(tokens[:1])
        assert other.restore_seq(ctx.seq_state(1), 1)
        assert nmse(other.decode(tokens[1:]), ctx.decode(tokens[1:])) <= F16_BOUND


def test_a_state_of_another_plan_is_refused(random_model: Loaded, tmp_path: Path) -> None:
    base = Config(random_model.pairs, n_ubatch=16)
    configs = [coded(random_model, base, tmp_path / f"{seed}.gguf", seed=seed) for seed in range(2)]
    assert_a_state_is_refused(random_model, configs[0], configs[1:])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"fingerprint": "0123456789abcdef"}, "another model"),
        ({"version": 9}, "a plan of another version"),
        ({"n_layer": 7}, "another model"),
        ({"version": 2}, "a plan of another version"),
        ({"groups": [2, 3, 3, 4]}, "layer 3 is in two groups"),
        ({"groups": [2, 3, 4, 6]}, "layer 6 is in two groups, or there is none"),
        ({"groups": [3, 2, 4, 5]}, "not in order"),
        ({"groups": [2, 3, 4]}, "too many"),
        ({"group_sizes": [2, 1]}, "differ in length"),
        ({"group_sizes": [2, 3]}, "too many"),
        ({"group_sizes": [4, 0]}, "no layers"),
        ({"group_sizes": [-1, 5]}, "no layers"),
        ({"group_sizes": [1, 3]}, "longer than what it codes"),
        ({"group_sizes": [3, 1]}, "no codec|wrong size"),
        ({"heads": [2, 32, 32]}, "differ in length"),
        ({"type_k": "q9_9"}, "no cache type"),
        ({"version": 3}, "a plan of another version"),
        ({"units_k": [9] * 28}, "longer than what it codes"),
        ({"units_v": [*UNITS_V, *UNITS_V[:7], 5, 0, 0, 0, 0, 0, 0]}, "longer than what it codes"),
        ({"units_k": [*UNITS_K, *UNITS_K[:13], -1]}, "units of one width"),
        # of one group in place of two, or of three, and of all heads but a part of the last
        ({"units_k": UNITS_K}, "differ in length"),
        ({"units_v": 3 * UNITS_V}, "differ in length"),
        ({"units_v": (2 * UNITS_V)[:-1]}, "differ in length"),
        # of the first head for all
        ({"units_k": 4 * UNITS_K[:7]}, "wrong size"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_plan_that_does_not_fit_is_refused(
    load: Callable[..., Loaded], plan: Path, changes: dict[str, object], reason: str
) -> None:
    loaded = load(tiny_models.random_model)
    config = coded(loaded, Config(((2, 3), (4, 5))), plan)
    write_plan(loaded, config, **changes)
    assert re.search(reason, refusal(loaded, plan))


def test_a_plan_cut_short_is_refused(random_model: Loaded, plan: Path) -> None:
    coded(random_model, Config(random_model.pairs), plan)
    plan.write_bytes(plan.read_bytes()[:-1000])
    assert "cut short" in refusal(random_model, plan)


def test_a_plan_that_claims_more_than_its_file_holds_is_refused(random_model: Loaded, plan: Path) -> None:
    """Before memory is asked for, which a tensor of 2^40 bytes would not get."""
    coded(random_model, Config(random_model.pairs), plan)
    reader = gguf.GGUFReader(plan)
    codec = reader.tensors[-1]
    data = plan.read_bytes()
    at = codec.field.offset + data[codec.field.offset :].index(np.uint64(codec.shape[0]).tobytes())
    plan.write_bytes(data[:at] + np.uint64(1 << 40).tobytes() + data[at + 8 :])
    assert "cut short" in refusal(random_model, plan)


def test_the_report_counts_codes_and_codecs(load: Callable[..., Loaded], plan: Path) -> None:
    loaded = load(tiny_models.random_model, n_layer=4, head_size=64)
    config = coded(loaded, Config(((0, 1), (2, 3)), n_cells=512), plan)
    n_head_kv, n_cells = loaded.tiny.shape.n_head_kv, 512
    with Context.of(loaded.model, config) as ctx:
        report = ctx.report()
    row = config.codecs[0].k.row_bytes + config.codecs[0].v.row_bytes
    assert report.bytes_directions + report.bytes_magnitudes == 2 * n_cells * row
    assert report.bytes_magnitudes == 2 * n_cells * n_head_kv * 4
    assert report.fixed_bytes >= 2 * config.codecs[0].n_bytes
    assert report.bytes_f16 == 4 * n_cells * n_head_kv * 64 * 4
    assert report.ratio == pytest.approx(report.bytes_f16 / (report.bytes - report.fixed_bytes))


def test_the_environment_names_a_plan(
    random_model: Loaded, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = coded(random_model, Config(random_model.pairs, n_ubatch=16), plan)
    tokens = run(prompt(60))
    expected = native(random_model, config, tokens)
    monkeypatch.setenv("LLAMA_MINICACHE", f"plan={plan}")
    monkeypatch.setattr(contexts, "use_off", binding.use_env)
    assert np.array_equal(native(random_model, Config(n_ubatch=16), tokens), expected)


def test_minicache_shows_the_settings_of_its_plan(random_model: Loaded, plan: Path) -> None:
    coded(random_model, Config(random_model.pairs, retain=0.1, type_k="q8_0", type_v="q4_0"), plan)
    minicache = MiniCache(plan=str(plan))
    assert (minicache.type_k, minicache.type_v) == ("q8_0", "q4_0")
    assert minicache.groups == random_model.pairs


def test_a_plan_with_numbers_that_are_not_finite_is_refused(random_model: Loaded, plan: Path) -> None:
    """The kernels would spread such numbers over every token."""
    config = coded(random_model, Config(random_model.pairs), plan)
    (codec,) = config.codecs
    *others, last = codec.v.heads

    def refused(broken: Head) -> str:
        changed = replace(codec, v=Part((*others, broken)))
        write_plan(random_model, replace(config, codecs=(changed,)))
        return refusal(random_model, plan)

    for name in ("gain", "decoder"):
        assert "not finite" in refused(replace(last, **{name: getattr(last, name) * np.inf}))
    assert "not above 0" in refused(replace(last, mag=last.mag * [1, 0]))

"""Groups of one to four layers with one shared code: whole models against the oracle, shifted, saved and refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import CacheSpec, MiniCache
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from oracle.model import Config, Oracle
from support import scenarios, tiny_models
from support.assertions import (
    assert_a_sequence_continues,
    assert_a_state_continues,
    assert_a_state_is_refused,
    assert_matches_the_oracle,
)
from support.bounds import CODE_BOUND, TIED_BOUND, UNTIED_BOUND
from support.contexts import Context, ContextRefused, captured_log, interleaved, nmse, run
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native, oracle_run
from support.plans import Groups, coded, fingerprint, write_plan
from support.scenarios import Memory, Result
from support.tiny_models import TinyModel, prompt

# ways to group all six layers of the tiny models
GROUPS: list[Groups] = [
    ((0,), (1, 2, 3, 4), (5,)),
    ((0, 1, 2), (3, 4, 5)),
    ((0, 1, 2, 3), (4, 5)),
    ((0,), (1,), (2,), (3,), (4,), (5,)),
]
MIXED = GROUPS[0]


def assert_agrees(loaded: Loaded, config: Config, n_threads: int, n_prompts: int = 2) -> None:
    """The logits of all prompts are near the oracle's, and those of at least one are the oracle's."""
    errors = []
    for i in range(n_prompts):
        tokens, expected = clear_cut(
            loaded,
            config,
            lambda seed, i=i: interleaved([prompt(30, 100 * i + 10 * seed + k) for k in range(2)]),
        )
        errors.append(nmse(native(loaded, config, tokens, n_threads), expected))
    assert max(errors) <= TIED_BOUND
    assert min(errors) <= UNTIED_BOUND


@pytest.mark.parametrize("n_ubatch", [1, 7])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_every_split_matches_the_oracle(
    random_model: Loaded, plan: Path, groups: Groups, n_ubatch: int
) -> None:
    """With retained tokens and a window, whose pools hold K and V of each layer."""
    base = Config(groups, retain=0.1, window=5, n_ubatch=n_ubatch, n_seq_max=2, unified=n_ubatch == 7)
    assert_agrees(random_model, coded(random_model, base, plan), n_threads=1 + n_ubatch % 3)


def test_the_bound_excludes_mistakes(random_model: Loaded, plan: Path) -> None:
    config = coded(random_model, Config(MIXED, retain=0.1, n_ubatch=7), plan)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(100, seed)))
    assert nmse(native(random_model, config, tokens), expected) <= CODE_BOUND
    first, four, last = config.codecs
    rolled = four.k.changed(lambda head: replace(head, decoder=np.roll(head.decoder, head.head_size, axis=0)))
    mistakes = {
        "decoders of other sides": replace(config, codecs=(first, replace(four, k=rolled), last)),
        "nothing retained": replace(config, retain=0.0),
        "the codec of another group": replace(config, codecs=(last, four, first)),
    }
    for name, wrong in mistakes.items():
        assert nmse(oracle_run(random_model, wrong, tokens)[0], expected) > 2 * TIED_BOUND, name


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.take_turns,
        scenarios.copy_then_diverge,
        scenarios.remove_and_reuse,
        scenarios.shift_context,
        scenarios.clear_and_start_again,
    ],
)
def test_operations_match_the_oracle(
    random_model: Loaded, plan: Path, scenario: Callable[[Memory, int], Result], unified: bool
) -> None:
    base = Config(MIXED, retain=0.1, window=9, pool_type="f16", n_ubatch=16, n_seq_max=2, unified=unified)
    assert_matches_the_oracle(random_model, coded(random_model, base, plan), scenario, TIED_BOUND)


@pytest.mark.parametrize("arch", ["qwen2", "refact"])
def test_other_position_encodings(load: Callable[..., Loaded], plan: Path, arch: str) -> None:
    """RoPE over halves, and no RoPE."""
    loaded = load(tiny_models.random_model, arch=arch, n_layer=4)
    config = coded(loaded, Config(((0, 1, 2, 3),), retain=0.1, n_ubatch=16), plan)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(100, seed), 37))
    assert nmse(native(loaded, config, tokens), expected) <= CODE_BOUND


@pytest.mark.parametrize("unified", [True, False])
def test_a_saved_state_continues_bit_for_bit(random_model: Loaded, plan: Path, unified: bool) -> None:
    base = Config(MIXED, retain=0.1, window=9, n_ubatch=16, n_seq_max=2, unified=unified)
    config = coded(random_model, base, plan)
    assert_a_state_continues(random_model, config, 2)


def test_a_restored_sequence_continues(random_model: Loaded, plan: Path) -> None:
    base = Config(MIXED, window=24, n_ubatch=16, n_seq_max=2, unified=False)
    config = coded(random_model, base, plan)
    assert_a_sequence_continues(random_model, config)


def test_a_state_of_other_groups_is_refused(random_model: Loaded, tmp_path: Path) -> None:
    """The state has the same layers, grouped differently."""
    configs = [
        coded(random_model, Config(groups, n_ubatch=16), tmp_path / f"{i}.gguf")
        for i, groups in enumerate((((0, 1), (2, 3), (4, 5)), ((0, 1, 2, 3), (4, 5)), ((0, 1, 2), (3, 4, 5))))
    ]
    for config in configs[1:]:
        with captured_log() as lines:
            assert_a_state_is_refused(random_model, configs[0], [config])
        assert any("groups of layers" in text for _, text in lines)


@pytest.mark.parametrize(("retain", "window", "pool"), [(0.0, 0, "f16"), (0.1, 7, "q8_0"), (0.03, 33, "f16")])
@pytest.mark.parametrize("groups", [*GROUPS, ((1, 2, 3),), ((2,), (4, 5))], ids=str)
def test_the_report_counts_what_is_there(
    random_model: Loaded, plan: Path, groups: Groups, retain: float, window: int, pool: str
) -> None:
    config = coded(
        random_model, Config(groups, retain=retain, window=window, pool_type=pool, n_cells=512), plan
    )
    with Context.of(random_model.model, config) as ctx:
        report = ctx.report()
    shape = model_shape(read_gguf(random_model.path))
    assert report.bytes == kv_bytes(shape, CacheSpec.of(MiniCache(plan=plan)), 512)
    assert report.groups == list(groups)
    assert report.pairs == [(a, a + 1) for group in groups for a in group[:-1]]
    merged = {layer: group for group in groups for layer in group}
    for number, layer in enumerate(report.layers):
        group = merged.get(number)
        assert (layer.kind, layer.group) == ("merged" if group else "plain", group)
        assert layer.side == (group.index(number) if group else None)
    heads = random_model.tiny.shape.n_head_kv
    rows = [
        (len(group), codec.k.row_bytes + codec.v.row_bytes)
        for group, codec in zip(groups, config.codecs, strict=True)
    ]
    assert report.bytes_directions + report.bytes_magnitudes == 512 * sum(row for _, row in rows)
    assert report.bytes_magnitudes == 512 * heads * sum(2 * (n + n % 2) for n, _ in rows)
    assert report.bytes_codec == sum(codec.n_bytes for codec in config.codecs)
    assert sum(layer.bytes for layer in report.layers) == report.bytes - report.fixed_bytes
    assert report.bytes_f16 == 6 * 512 * heads * random_model.tiny.shape.head_size * 4
    for group in groups:
        assert "+".join(map(str, group)) in str(report)


def test_distances_are_of_the_whole_group(random_model: Loaded, plan: Path) -> None:
    config = coded(random_model, Config(MIXED, n_ubatch=16), plan)
    tokens = run(prompt(60))
    oracle = Oracle(random_model.tiny, config)
    oracle.decode(tokens)
    with Context.of(random_model.model, config) as ctx:
        ctx.decode(tokens)
        report = ctx.report()
    for group in MIXED:
        distance_k, distance_v = np.mean(oracle.groups[group].distances, axis=0)
        for layer in group:
            assert report.layers[layer].n_merged == 60
            assert report.layers[layer].distance_k == pytest.approx(distance_k, rel=1e-2)
            assert report.layers[layer].distance_v == pytest.approx(distance_v, rel=1e-2)


def test_a_group_of_unlike_layers_stays_plain(random_model: Loaded, plan: Path, tmp_path: Path) -> None:
    """The report gives the reason; the other group is coded."""
    config = coded(random_model, Config(((0, 1, 2), (3, 4, 5))), plan)
    shape, weights = random_model.tiny.shape, dict(random_model.tiny.weights)
    for name in ("blk.2.attn_k.weight", "blk.2.attn_v.weight"):
        weights[name] = weights[name][: shape.head_size]  # one head
    # llama.cpp's Deci is its Llama, except that layers may differ in their number of heads
    shape = replace(shape, arch="deci", n_head_kv=[2, 2, 1, 2, 2, 2])  # type: ignore[arg-type]
    unlike = Loaded(TinyModel(shape, weights), tmp_path / "unlike.gguf")
    write_plan(random_model, config, fingerprint=fingerprint(unlike))
    with Context(unlike.model, MiniCache(plan=plan)) as ctx:
        assert np.isfinite(ctx.decode(run(prompt(30)))).all()
        report = ctx.report()
    assert report.groups == [(3, 4, 5)]
    for side, layer in enumerate(report.layers[:3]):
        assert (layer.kind, layer.group, layer.side) == ("refused", (0, 1, 2), side)
        assert layer.reason == "the layers differ in KV heads: 2 and 1"
        assert layer.distance is None
    with pytest.raises(ContextRefused, match="layers 0, 1 and 2 cannot be merged"):
        Context(unlike.model, MiniCache(plan=plan, strict=True))

"""Layers outside groups, each with cache types of its own: whole models against the oracle, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import CacheSpec, Llama, MiniCache, MiniCacheError
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from oracle.model import Config, Oracle
from support import scenarios, tiny_models
from support.assertions import assert_a_state_continues, assert_matches_the_oracle
from support.bounds import CODE_BOUND, F16_BOUND, MIXED_BOUND, QUANTIZED_BOUND
from support.contexts import Context, ContextRefused, captured_log, nmse, run
from support.family_models import FAMILIES
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native
from support.plans import LAYER_TYPES, coded, plain, refusal, write_plan
from support.scenarios import CASES, Memory, Result
from support.tiny_models import prompt


@pytest.mark.parametrize("n_ubatch", [1, 16])
@pytest.mark.parametrize("head_size", [32, 64, 128])
def test_types_by_layer_match_the_oracle(
    load: Callable[..., Loaded], plan: Path, head_size: int, n_ubatch: int
) -> None:
    """Heads of 64 and 128 are rotated in layers whose type is quantized, and only there."""
    loaded = load(tiny_models.random_model, head_size=head_size)
    config = plain(loaded, Config(n_ubatch=n_ubatch, type_k="q5_0", plain=LAYER_TYPES), plan)
    tokens = run(prompt(80))
    result = native(loaded, config, tokens)
    assert nmse(result, Oracle(loaded.tiny, config).decode(tokens)) <= QUANTIZED_BOUND
    # a wrong type of one layer is noticed
    wrong = replace(config, plain=LAYER_TYPES[:1] + ((1, "f16", "q8_0"), *LAYER_TYPES[2:]))
    assert nmse(Oracle(loaded.tiny, wrong).decode(tokens), Oracle(loaded.tiny, config).decode(tokens)) > 0


@pytest.mark.parametrize("head_size", [32, 64, 128])
@pytest.mark.parametrize(
    ("type_k", "type_v"), [("f16", "f16"), ("q8_0", "q4_0"), ("f16", "q5_1"), ("q4_0", "bf16")]
)
def test_one_type_for_all_is_the_plain_cache(
    load: Callable[..., Loaded], plan: Path, head_size: int, type_k: str, type_v: str
) -> None:
    """A plan that names a type once and one that names it for each layer agree bit for bit, rotations included.

    Upstream rounds queries, so its logits are only near.
    """
    loaded = load(tiny_models.random_model, head_size=head_size)
    tokens = run(prompt(80))
    expected = native(loaded, Config(n_ubatch=16, type_k=type_k, type_v=type_v), tokens)
    by_layer = tuple((layer, type_k, type_v) for layer in range(loaded.tiny.shape.n_layer))
    results = [
        native(loaded, plain(loaded, replace(types, n_ubatch=16), plan), tokens)
        for types in (Config(type_k=type_k, type_v=type_v), Config(plain=by_layer))
    ]
    assert np.array_equal(*results)
    assert nmse(results[0], expected) <= (F16_BOUND if type_k == type_v == "f16" else QUANTIZED_BOUND)


@pytest.mark.parametrize("head_size", [32, 64])
def test_types_of_the_ends_are_those_of_a_plan(
    load: Callable[..., Loaded], plan: Path, head_size: int
) -> None:
    """Types that are given for the first and the last layers agree with a plan that names the layers, bit for bit."""
    loaded = load(tiny_models.random_model, head_size=head_size)
    n_layer, tokens = loaded.tiny.shape.n_layer, run(prompt(80))
    by_layer = (
        (0, "q8_0", "f16"),
        (1, "q8_0", "f16"),
        *((layer, "q5_0", "q4_0") for layer in range(2, n_layer - 1)),
        (n_layer - 1, "f16", "q8_0"),
    )
    expected = native(loaded, plain(loaded, Config(n_ubatch=16, plain=by_layer), plan), tokens)
    spec = CacheSpec.parse("plain:k=q5_0,v=q4_0,first=2:q8_0/f16,last=1:f16/q8_0")
    with Context(loaded.model, spec.minicache, type_k="q5_0", type_v="q4_0", n_ubatch=16) as ctx:
        assert np.array_equal(ctx.decode(tokens), expected)
        report = ctx.report()
        assert [(n, one.type_k, one.type_v) for n, one in enumerate(report.layers)] == list(by_layer)
        assert (report.active, report.note) == (False, "")
        assert report.bytes == kv_bytes(model_shape(read_gguf(loaded.path)), spec, 256)
    assert MiniCache.parse(spec.name) == spec.minicache


def test_ends_that_overlap_are_the_first_layers(random_model: Loaded) -> None:
    minicache = MiniCache(mode="plain", first=(5, "q8_0"), last=(9, "q4_0"))
    with Context(random_model.model, minicache) as ctx:
        assert [one.type_k for one in ctx.report().layers] == ["q8_0"] * 5 + ["q4_0"]


def test_types_by_layer_are_of_what_grows(tmp_path: Path) -> None:
    """Windows beside it have the common types."""
    family = FAMILIES["gemma3"]
    path = family.write(tmp_path / "model.gguf")
    with Llama(str(path), n_ctx=512, minicache="plain:k=q8_0,v=q4_0,first=1:f16", verbose=False) as llm:
        types = [(one.type_k, one.type_v) for one in llm.kv_report().layers]
    for layer in range(family.shape.n_layer):
        assert types[layer] == (("f16", "f16") if layer == family.grows[0] else ("q8_0", "q4_0"))


def test_types_of_an_end_that_do_not_fit_the_heads_are_refused(load: Callable[..., Loaded]) -> None:
    loaded = load(tiny_models.random_model, head_size=16, n_layer=4)
    with pytest.raises(ContextRefused, match="do not fit the head sizes of layer 0"):
        Context(loaded.model, MiniCache(mode="plain", first=(1, "q8_0")))


@pytest.mark.parametrize("first", [2, (2,), ("2", "q8_0"), (2, "q3"), (True, "q8_0"), (-1, "q8_0")])
def test_what_is_no_end_is_refused(first: object) -> None:
    with pytest.raises(MiniCacheError, match="first"):
        MiniCache(mode="plain", first=first)  # type: ignore[arg-type]


def test_a_layer_is_rotated_where_its_own_type_is_quantized(load: Callable[..., Loaded], plan: Path) -> None:
    """The f16 layers of a cache are those of an f16 cache, although another layer is quantized."""
    loaded = load(tiny_models.random_model, head_size=64, n_layer=2)
    tokens = run(prompt(80))
    states = []
    for types in ((), ((1, "q8_0", "q8_0"),)):
        config = plain(loaded, Config(n_ubatch=16, plain=types), plan)
        with Context.of(loaded.model, config) as ctx:
            ctx.decode(tokens)
            states.append(ctx.seq_state(0))
    # K of layer 0 comes first, after a header and a few words for each cell, with the same bytes in both states
    n_bytes = len(tokens) * 2 * loaded.tiny.shape.n_head_kv * 64
    assert any(states[0][start : start + n_bytes] in states[1] for start in range(400, 2000))


@pytest.mark.parametrize(
    "types", [(("q8_0", "q4_0"), ("f16", "q8_0")), (("q4_1", "f16"), ("bf16", "iq4_nl"))]
)
def test_beside_coded_pairs(
    load: Callable[..., Loaded], plan: Path, types: tuple[tuple[str, str], tuple[str, str]]
) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    own = tuple((layer, *names) for layer, names in zip((0, 5), types, strict=True))
    base = Config(((1, 2), (3, 4)), retain=0.1, window=5, n_ubatch=16, plain=own)
    config = coded(loaded, base, plan)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(80, seed)))
    assert nmse(native(loaded, config, tokens), expected) <= MIXED_BOUND


def test_codes_alone_are_exact_beside_a_rotation(load: Callable[..., Loaded], plan: Path) -> None:
    """q, k and v of a coded layer are not rotated."""
    loaded = load(tiny_models.random_model, head_size=64)
    pairs = ((0, 1), (2, 3))
    tokens = run(prompt(60))
    logits = []
    for types in ((), ((5, "q8_0", "q8_0"),)):
        config = coded(loaded, Config(pairs, n_ubatch=16, plain=types), plan)
        with Context.of(loaded.model, config) as ctx:
            ctx.decode(tokens[:1])  # the first token sees only itself
            logits.append(ctx.decode(tokens[1:]))
    assert 0 < nmse(logits[1], logits[0]) <= CODE_BOUND


@pytest.mark.parametrize(("scenario", "unified"), CASES)
def test_operations_match_the_oracle(
    load: Callable[..., Loaded], plan: Path, scenario: Callable[[Memory, int], Result], unified: bool
) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    base = Config(n_ubatch=16, n_seq_max=2, unified=unified, type_v="q8_0", plain=LAYER_TYPES)
    config = plain(loaded, base, plan)
    assert_matches_the_oracle(loaded, config, scenario, QUANTIZED_BOUND)


@pytest.mark.parametrize(("type_k", "can"), [("bf16", False), ("f16", True), ("q4_0", True)])
def test_bf16_keys_cannot_be_shifted(random_model: Loaded, plan: Path, type_k: str, can: bool) -> None:
    """ggml's RoPE does not support bf16 and would end the process."""
    config = coded(random_model, Config(((3, 4),), plain=((5, type_k, "bf16"),)), plan)
    with Context.of(random_model.model, config) as ctx:
        assert ctx.report().can_shift == can


@pytest.mark.parametrize("scenario", [scenarios.shift_context, scenarios.copy_then_diverge])
def test_operations_beside_coded_pairs(
    load: Callable[..., Loaded], plan: Path, scenario: Callable[[Memory, int], Result]
) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    base = Config(
        ((1, 2), (3, 4)), retain=0.1, n_ubatch=16, n_seq_max=2, plain=((0, "q8_0", "f16"), (5, "f16", "q4_0"))
    )
    assert_matches_the_oracle(loaded, coded(loaded, base, plan), scenario, MIXED_BOUND)


@pytest.mark.parametrize("unified", [True, False])
def test_a_saved_state_continues_bit_for_bit(random_model: Loaded, plan: Path, unified: bool) -> None:
    base = Config(
        ((1, 2),),
        retain=0.05,
        n_ubatch=16,
        n_seq_max=2,
        unified=unified,
        plain=((0, "q8_0", "f16"), (4, "q4_0", "q5_1")),
    )
    config = coded(random_model, base, plan)
    assert_a_state_continues(random_model, config, 20)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_a_state_of_other_types_is_refused(
    random_model: Loaded, tmp_path: Path, whole: bool, paired: bool
) -> None:
    """It is refused before anything changes, although rows of the two types have the same size."""
    configs = []
    for name, types in {"a": ((0, "f16", "q4_0"),), "b": ((0, "f16", "iq4_nl"),)}.items():
        make = coded if paired else plain
        base = Config(random_model.pairs if paired else (), n_ubatch=16, plain=types)
        configs.append(make(random_model, base, tmp_path / f"{name}.gguf"))
    with (
        Context.of(random_model.model, configs[0]) as foreign,
        Context.of(random_model.model, configs[1]) as ctx,
        Context.of(random_model.model, configs[1]) as untouched,
    ):
        foreign.decode(run(prompt(40)))
        for one in (ctx, untouched):
            one.decode(run(prompt(30, 1)))
        with captured_log() as lines:
            if whole:
                assert not ctx.restore(foreign.state())
            else:
                assert not ctx.restore_seq(foreign.seq_state(0), 0)
        assert any("other cache types of layers that are not merged" in text for _, text in lines)
        tokens = run(prompt(20, 3), 30)
        assert np.array_equal(ctx.decode(tokens), untouched.decode(tokens))


def test_every_type_is_allocated_as_the_plan_says(random_model: Loaded, plan: Path) -> None:
    """The report, `inspect` and the plan agree about the bytes, the ratio and the types of each layer."""
    own = ((0, "q8_0", "q4_0"), (2, "f16", "bf16"), (5, "iq4_nl", "q5_1"))
    config = coded(random_model, Config(((3, 4),), type_k="q5_0", type_v="q8_0", plain=own), plan)
    read = PlanFile.open(plan).plan
    assert [(one.layer, *one.types) for one in read.plain] == list(config.plain)
    assert read.plain_types() == {
        0: ("q8_0", "q4_0"),
        1: ("q5_0", "q8_0"),
        2: ("f16", "bf16"),
        5: ("iq4_nl", "q5_1"),
    }
    with Llama(str(random_model.path), minicache=plan, n_ctx=512, n_threads=1, verbose=False) as llm:
        report = llm.kv_report()
    types = [(one.type_k, one.type_v) for one in report.layers]
    assert types == [
        ("q8_0", "q4_0"),
        ("q5_0", "q8_0"),
        ("f16", "bf16"),
        (None, None),
        (None, None),
        ("iq4_nl", "q5_1"),
    ]
    shape = model_shape(read_gguf(random_model.path))
    assert report.bytes == kv_bytes(shape, CacheSpec.parse(str(plan)), 512)
    assert report.bytes_unmerged == sum(one.bytes for one in report.layers if one.kind == "plain")
    per_value = {
        "f16": 2,
        "bf16": 2,
        "q8_0": 34 / 32,
        "q5_1": 24 / 32,
        "q5_0": 22 / 32,
        "q4_0": 18 / 32,
        "iq4_nl": 18 / 32,
    }
    for one in (layer for layer in report.layers if layer.kind == "plain"):
        assert one.bytes == 512 * 64 * sum(per_value[str(name)] for name in (one.type_k, one.type_v))
    assert report.bytes_plain == report.bytes_unmerged + 2 * 512 * 64 * (22 + 34) / 32
    assert "unmerged layers with other types: q8_0/q4_0 in 0, f16/bf16 in 2, iq4_nl/q5_1 in 5" in str(report)
    row = inspect_model(random_model.path, 512, [str(plan)])["rows"][0]
    assert row["bytes"] == report.bytes


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ([0, 8], "differ in length"),
        ([3, 8, 8], "kept in two ways"),
        ([0, 8, 8, 0, 2, 2], "kept in two ways"),
        ([6, 8, 8], "there is none"),
        ([-1, 8, 8], "there is none"),
        ([0, 8, 4000], "unknown cache type"),
        ([0, 8, 4], "unknown cache type"),
        ([0, 8, 0], "unknown cache type"),
    ],
)
def test_a_damaged_list_is_refused(random_model: Loaded, plan: Path, numbers: list[int], reason: str) -> None:
    config = coded(random_model, Config(((3, 4),), plain=((0, "q8_0", "q8_0"),)), plan)
    MiniCache(plan=plan)
    write_plan(random_model, config, plain=numbers)
    assert reason in refusal(random_model, plan)
    with pytest.raises(MiniCacheError, match="make a new one"):
        MiniCache(plan=plan)


def test_types_that_do_not_fit_the_heads_are_refused(load: Callable[..., Loaded], plan: Path) -> None:
    loaded = load(tiny_models.random_model, head_size=16)
    plain(loaded, Config(plain=((2, "f16", "q8_0"),)), plan)
    assert "head sizes of layer 2" in refusal(loaded, plan)
    with pytest.raises(MiniCacheError, match="multiple of 32"):
        kv_bytes(model_shape(read_gguf(loaded.path)), CacheSpec.parse(str(plan)), 512)

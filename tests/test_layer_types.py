"""Layers that are not paired, each with cache types of its own: against the oracle, moved, saved, reported, refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import test_memory_ops
import tiny_models
from coded_models import coded, plain, write_plan
from conftest import Loaded
from lowlevel import Context, captured_log, nmse, run
from numpy.typing import NDArray
from oracle.model import Config, Oracle
from oracle.quant import TYPES
from oracle.quant import round_trip as stored
from test_codes import CODE_BOUND, MIXED_BOUND, refusal
from test_end_to_end import F16_BOUND, QUANTIZED_BOUND, clear_cut, native
from test_memory_ops import CASES, Memory, Result, assert_a_state_goes_on, assert_matches_the_oracle
from tiny_models import prompt

from minicache_cpp import CacheSpec, Llama, MiniCache, MiniCacheError
from minicache_cpp.cache.plan_file import read_plan
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.calibrate.plain_fit import hadamard, rotation, round_trip
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile.ggml_types import GGML_TYPES
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.modelfile.shape import model_shape

Floats = NDArray[np.float32]

MIXED = (
    (0, "q8_0", "f16"),
    (1, "f16", "q4_0"),
    (2, "iq4_nl", "q5_1"),
    (4, "q5_1", "bf16"),
    (5, "q4_1", "q5_0"),
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "plan.gguf"


@pytest.mark.parametrize("n_ubatch", [1, 16])
@pytest.mark.parametrize("head_size", [32, 64, 128])
def test_types_by_layer_match_the_oracle(
    load: Callable[..., Loaded], plan: Path, head_size: int, n_ubatch: int
) -> None:
    """Heads of 64 and 128 are rotated where a layer's type is quantized, and only there."""
    loaded = load(tiny_models.random_model, head_size=head_size)
    config = plain(loaded, Config(n_ubatch=n_ubatch, type_k="q5_0", plain=MIXED), plan)
    tokens = run(prompt(80))
    result = native(loaded, config, tokens)
    assert nmse(result, Oracle(loaded.tiny, config).decode(tokens)) <= QUANTIZED_BOUND
    # a mistake in one layer's type shows
    wrong = replace(config, plain=MIXED[:1] + ((1, "f16", "q8_0"), *MIXED[2:]))
    assert nmse(Oracle(loaded.tiny, wrong).decode(tokens), Oracle(loaded.tiny, config).decode(tokens)) > 0


@pytest.mark.parametrize("head_size", [32, 64, 128])
@pytest.mark.parametrize(
    ("type_k", "type_v"), [("f16", "f16"), ("q8_0", "q4_0"), ("f16", "q5_1"), ("q4_0", "bf16")]
)
def test_one_type_for_all_is_the_plain_cache(
    load: Callable[..., Loaded], plan: Path, head_size: int, type_k: str, type_v: str
) -> None:
    """Rotations included, bit for bit whether the plan says so at once or layer by layer; upstream rounds queries."""
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


def test_a_layer_is_rotated_where_its_own_type_is_quantized(load: Callable[..., Loaded], plan: Path) -> None:
    """The f16 layers of a cache are as in an f16 cache, although another layer is quantized."""
    loaded = load(tiny_models.random_model, head_size=64, n_layer=2)
    tokens = run(prompt(80))
    states = []
    for types in ((), ((1, "q8_0", "q8_0"),)):
        config = plain(loaded, Config(n_ubatch=16, plain=types), plan)
        with Context.of(loaded.model, config) as ctx:
            ctx.decode(tokens)
            states.append(ctx.seq_state(0))
    # the K of layer 0 stands first, after a header and a few words for each cell, the same bytes in both
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
    """A coded layer's q, k and v are not rotated there and back."""
    loaded = load(tiny_models.random_model, head_size=64)
    pairs = ((0, 1), (2, 3))
    tokens = run(prompt(60))
    logits = []
    for types in ((), ((5, "q8_0", "q8_0"),)):
        config = coded(loaded, Config(pairs, n_ubatch=16, plain=types), plan)
        with Context.of(loaded.model, config) as ctx:
            ctx.decode(tokens[:1])  # one token sees itself: the first of the cells alone
            logits.append(ctx.decode(tokens[1:]))
    assert 0 < nmse(logits[1], logits[0]) <= CODE_BOUND


@pytest.mark.parametrize(("scenario", "unified"), CASES)
def test_operations_match_the_oracle(
    load: Callable[..., Loaded], plan: Path, scenario: Callable[[Memory, int], Result], unified: bool
) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    base = Config(n_ubatch=16, n_seq_max=2, unified=unified, type_v="q8_0", plain=MIXED)
    config = plain(loaded, base, plan)
    assert_matches_the_oracle(loaded, config, scenario, QUANTIZED_BOUND)


@pytest.mark.parametrize(("type_k", "can"), [("bf16", False), ("f16", True), ("q4_0", True)])
def test_bf16_keys_cant_be_shifted(random_model: Loaded, plan: Path, type_k: str, can: bool) -> None:
    """ggml's RoPE does not know them, and would end the process."""
    config = coded(random_model, Config(((3, 4),), plain=((5, type_k, "bf16"),)), plan)
    with Context.of(random_model.model, config) as ctx:
        assert ctx.report().can_shift == can


@pytest.mark.parametrize("scenario", [test_memory_ops.shift_context, test_memory_ops.copy_then_diverge])
def test_operations_beside_coded_pairs(
    load: Callable[..., Loaded], plan: Path, scenario: Callable[[Memory, int], Result]
) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    base = Config(
        ((1, 2), (3, 4)), retain=0.1, n_ubatch=16, n_seq_max=2, plain=((0, "q8_0", "f16"), (5, "f16", "q4_0"))
    )
    assert_matches_the_oracle(loaded, coded(loaded, base, plan), scenario, MIXED_BOUND)


@pytest.mark.parametrize("unified", [True, False])
def test_a_saved_state_goes_on_bit_for_bit(random_model: Loaded, plan: Path, unified: bool) -> None:
    base = Config(
        ((1, 2),),
        retain=0.05,
        n_ubatch=16,
        n_seq_max=2,
        unified=unified,
        plain=((0, "q8_0", "f16"), (4, "q4_0", "q5_1")),
    )
    config = coded(random_model, base, plan)
    assert_a_state_goes_on(random_model, config, 20)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_a_state_of_other_types_is_refused(
    random_model: Loaded, tmp_path: Path, whole: bool, paired: bool
) -> None:
    """Before anything is changed, although rows of the two types have one size."""
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


#
# plan files, reports, sizes
#


def test_every_type_is_allocated_as_told(random_model: Loaded, plan: Path) -> None:
    """Bytes, ratio, and each layer's types, in the report, in `inspect`, and in the plan."""
    own = ((0, "q8_0", "q4_0"), (2, "f16", "bf16"), (5, "iq4_nl", "q5_1"))
    config = coded(random_model, Config(((3, 4),), type_k="q5_0", type_v="q8_0", plain=own), plan)
    read = read_plan(plan)
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
        ([0, 8, 0], "not supported"),
    ],
)
def test_a_damaged_list_is_refused(random_model: Loaded, plan: Path, numbers: list[int], reason: str) -> None:
    config = coded(random_model, Config(((3, 4),), plain=((0, "q8_0", "q8_0"),)), plan)
    MiniCache(plan=plan)
    write_plan(random_model, config, plain=numbers)
    assert reason in refusal(random_model, plan)
    with pytest.raises(MiniCacheError, match="make it anew"):
        MiniCache(plan=plan)


def test_types_that_heads_cant_have_are_refused(load: Callable[..., Loaded], plan: Path) -> None:
    loaded = load(tiny_models.random_model, head_size=16)
    plain(loaded, Config(plain=((2, "f16", "q8_0"),)), plan)
    assert "head sizes of layer 2" in refusal(loaded, plan)
    with pytest.raises(MiniCacheError, match="multiple of 32"):
        kv_bytes(model_shape(read_gguf(loaded.path)), CacheSpec.parse(str(plan)), 512)


#
# what calibration expects of a type
#


@pytest.mark.parametrize("kind", TYPES)
def test_rounding_is_ggmls(kind: str) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3, 64)).astype(np.float32)
    x[2, 1] = 0
    np.testing.assert_allclose(round_trip(x, kind), stored(x, kind), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("n", [64, 128])
def test_the_rotation_is_orthogonal_and_upstreams(n: int) -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    x = np.random.default_rng(0).standard_normal((4, 2, 128)).astype(np.float32)
    expected = (x.reshape(-1, n) @ matrix / np.sqrt(n)).reshape(x.shape)
    np.testing.assert_allclose(hadamard(x, n), expected, atol=1e-5)
    np.testing.assert_allclose(hadamard(hadamard(x, n), n), x, atol=1e-5)


def first_rows(loaded: Loaded, config: Config) -> list[Floats]:
    """Return the first layer's K and V of a token at position 0, [n_head_kv, head_size], as its cache stores them."""
    shape = loaded.tiny.shape
    with Context.of(loaded.model, config) as context:
        context.decode(run(prompt(1)))
        state = context.seq_state(0)
    rows = []
    for kind in (config.type_k, config.type_v):
        number = gguf.GGMLQuantizationType(GGML_TYPES[kind].number)
        block, n_bytes = gguf.GGML_QUANT_SIZES[number]
        size = shape.n_head_kv * shape.head_size // block * n_bytes
        # a layer's rows follow their type and size, and K's layers come before V's
        at = state.index(struct.pack("<iQ", number, size)) + 12
        stored_row = np.frombuffer(state[at : at + size], np.uint8)
        rows.append(gguf.dequantize(stored_row, number).reshape(shape.n_head_kv, shape.head_size))
    return rows


@pytest.mark.parametrize("own", [False, True], ids=["llama.cpp", "ours"])
@pytest.mark.parametrize("head_size", [32, 64, 96, 128, 192, 256])
def test_the_rotation_has_the_sizes_of_the_caches(
    load: Callable[..., Loaded], plan: Path, head_size: int, own: bool
) -> None:
    """What a cache stores is K and V after rotations of these sizes, and of no others."""
    loaded = load(tiny_models.random_model, head_size=head_size)
    exact, rounded = (
        first_rows(loaded, plain(loaded, config, plan) if own else config)
        for config in (Config(type_k="f16", type_v="bf16"), Config(type_k="q8_0", type_v="q5_1"))
    )
    for x, y, n in zip(exact, rounded, rotation(head_size, head_size), strict=True):
        assert nmse(y, hadamard(x, n)) < 2e-3
        for other in (0, 64, 128, 256):
            if other != n and (other == 0 or head_size % other == 0):
                assert nmse(y, hadamard(x, other)) > 0.1

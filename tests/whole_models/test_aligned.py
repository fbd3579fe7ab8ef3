"""Pairs merged in bases of their own: whole models against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import CacheSpec, MiniCache
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.binding import llama_h
from minicache_cpp.native.model_shape import model_shape
from oracle.model import BasisMatrices, Config
from support import scenarios, tiny_models
from support.assertions import assert_a_state_continues, assert_a_state_is_refused, assert_matches_the_oracle
from support.bounds import F16_BOUND, QUANTIZED_BOUND
from support.contexts import Context, captured_log, interleaved, nmse, run
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native, oracle_run
from support.plans import aligned, refusal, write_plan
from support.scenarios import CASES, Memory, Result
from support.tiny_models import prompt

ALL = ((0, 1), (2, 3))
SHIFTS = (
    scenarios.shift_context,
    scenarios.shift_and_shift_back,
    scenarios.shift_one_of_two,
    scenarios.divide_positions,
)


@pytest.mark.parametrize("n_ubatch", [1, 7, 64])
@pytest.mark.parametrize(("n_seq", "unified"), [(1, True), (4, True), (4, False)])
def test_every_split_matches_the_oracle(
    random_model: Loaded, plan: Path, n_ubatch: int, n_seq: int, unified: bool
) -> None:
    base = Config(random_model.pairs, retain=0.05, n_ubatch=n_ubatch, n_seq_max=n_seq, unified=unified)
    config = aligned(random_model, base, plan)
    length = 100 if n_seq == 1 else 40
    tokens, expected = clear_cut(
        random_model, config, lambda seed: interleaved([prompt(length, 10 * seed + i) for i in range(n_seq)])
    )
    for n_threads in (1, 2):
        assert nmse(native(random_model, config, tokens, n_threads), expected) <= F16_BOUND


def test_the_bound_excludes_mistakes(random_model: Loaded, plan: Path) -> None:
    config = aligned(random_model, Config(((2, 3), (4, 5)), retain=0.05, n_ubatch=7), plan)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(100, seed)))
    assert nmse(native(random_model, config, tokens), expected) <= F16_BOUND

    def transposed(one: BasisMatrices) -> BasisMatrices:
        return BasisMatrices(*(tuple(x.swapaxes(1, 2) for x in part if x is not None) for part in one))

    mistakes = {
        "no basis matrices": replace(config, basis_matrices=()),
        "transposed basis matrices": replace(
            config, basis_matrices=tuple(map(transposed, config.basis_matrices))
        ),
        "the basis matrices of another pair": replace(config, basis_matrices=config.basis_matrices[::-1]),
        "those of a for b": replace(
            config, basis_matrices=tuple(BasisMatrices(x.k[::-1], x.v[::-1]) for x in config.basis_matrices)
        ),
        "those of other heads": replace(
            config,
            basis_matrices=tuple(
                BasisMatrices((x.k[0], np.flip(x.k[1], 0)), x.v) for x in config.basis_matrices
            ),
        ),
        "another t": replace(config, t=0.5),
    }
    for name, wrong in mistakes.items():
        assert nmse(oracle_run(random_model, wrong, tokens)[0], expected) > 20 * F16_BOUND, name


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("head_size", [32, 64, 128])
@pytest.mark.parametrize(("type_k", "type_v"), [("f16", "f16"), ("q8_0", "q4_0"), ("q4_0", "bf16")])
def test_cache_types_match_the_oracle(
    load: Callable[..., Loaded], plan: Path, type_k: str, type_v: str, head_size: int, sides: int
) -> None:
    """In quantized types upstream rotates heads of 64 and more: K of 128 in one piece, V in two."""
    loaded = load(tiny_models.random_model, head_size=head_size, n_layer=4)
    base = Config(ALL, retain=0.1, n_ubatch=7, type_k=type_k, type_v=type_v)
    config = aligned(loaded, base, plan, sides=sides)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(60, seed)))
    bound = F16_BOUND if type_k == "f16" else QUANTIZED_BOUND
    assert nmse(native(loaded, config, tokens), expected) <= bound


@pytest.mark.parametrize("arch", ["qwen2", "refact"])
def test_other_architectures_match_the_oracle(load: Callable[..., Loaded], plan: Path, arch: str) -> None:
    loaded = load(tiny_models.random_model, arch=arch)
    config = aligned(loaded, Config(loaded.pairs, retain=0.05, n_ubatch=16), plan, dtype=np.float16)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(80, seed)))
    assert nmse(native(loaded, config, tokens), expected) <= F16_BOUND


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("sides", [1, 2])
def test_identity_matrices_are_slerp(load: Callable[..., Loaded], plan: Path, kind: str, sides: int) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    slerp = Config(loaded.pairs, t=0.4, retain=0.1, n_ubatch=16, type_k=kind, type_v=kind)
    config = aligned(loaded, slerp, plan, identity=True, sides=sides)
    tokens = run(prompt(100))
    # the identity between two Hadamard rotations is exact up to float32 rounding
    bound = 0.0 if kind == "f16" else 1e-4
    assert nmse(native(loaded, config, tokens), native(loaded, slerp, tokens)) <= bound


def test_basis_matrices_undo_the_turn_of_a_layer(load: Callable[..., Loaded], plan: Path) -> None:
    """Layers that differ only by an orthogonal matrix for each head merge without loss in the basis of one of them."""
    loaded = load(tiny_models.turned_model)
    turns = tiny_models.turns(loaded.tiny.shape)
    slerp = Config(loaded.pairs, n_ubatch=7)
    basis_matrices = tuple(
        BasisMatrices(
            (None, turns[b, "k"].swapaxes(1, 2)),
            (None, turns[b, "v"].swapaxes(1, 2)),
        )
        for _, b in loaded.pairs
    )
    config = replace(slerp, basis_matrices=basis_matrices, plan=str(plan))
    write_plan(loaded, config)
    tokens = run(prompt(60))
    full = native(loaded, Config(n_ubatch=7), tokens)
    assert nmse(native(loaded, config, tokens), full) <= 1e-5
    assert nmse(native(loaded, slerp, tokens), full) > 1e-2


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
@pytest.mark.parametrize(("scenario", "unified"), [case for case in CASES if case[0] not in SHIFTS])
def test_operations_match_the_oracle(
    load: Callable[..., Loaded],
    plan: Path,
    scenario: Callable[[Memory, int], Result],
    unified: bool,
    kind: str,
) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    base = Config(
        loaded.pairs, retain=0.1, type_k=kind, type_v=kind, n_ubatch=16, n_seq_max=2, unified=unified
    )
    config = aligned(loaded, base, plan)
    assert_matches_the_oracle(loaded, config, scenario, F16_BOUND if kind == "f16" else QUANTIZED_BOUND)


@pytest.mark.parametrize("arch", ["llama", "refact"])
def test_positions_can_be_shifted_only_without_rope(
    load: Callable[..., Loaded], plan: Path, arch: str
) -> None:
    loaded = load(tiny_models.random_model, arch=arch)
    config = aligned(loaded, Config(loaded.pairs, retain=0.1, n_ubatch=16, n_seq_max=2), plan)
    with captured_log() as log, Context.of(loaded.model, config) as ctx:
        assert llama_h.llama_memory_can_shift(ctx.memory) == ctx.report().can_shift == (arch == "refact")
        assert ("cannot be shifted" in str(ctx.report())) == (arch == "llama")
    assert any("cannot be shifted" in text for _, text in log) == (arch == "llama")
    if arch == "refact":
        for scenario in SHIFTS[:3]:
            assert_matches_the_oracle(loaded, config, scenario, F16_BOUND)


@pytest.mark.parametrize("unified", [True, False])
def test_a_saved_state_continues_bit_for_bit(random_model: Loaded, plan: Path, unified: bool) -> None:
    base = Config(random_model.pairs, retain=0.05, n_ubatch=16, n_seq_max=2, unified=unified)
    config = aligned(random_model, base, plan)
    assert_a_state_continues(random_model, config, 20)


def test_a_state_of_other_basis_matrices_is_refused(random_model: Loaded, tmp_path: Path) -> None:
    base = Config(random_model.pairs, n_ubatch=16)
    configs = [
        aligned(random_model, base, tmp_path / "0.gguf"),
        aligned(random_model, base, tmp_path / "1.gguf", seed=1),
        aligned(random_model, base, tmp_path / "2.gguf", sides=1),
        base,
        replace(base, average=True),
    ]
    assert_a_state_is_refused(random_model, configs[0], configs[1:])


def test_clearing_keeps_the_basis_matrices(random_model: Loaded, plan: Path) -> None:
    config = aligned(random_model, Config(random_model.pairs, n_ubatch=16), plan)
    tokens = run(prompt(60))
    with Context.of(random_model.model, config) as ctx:
        first = ctx.decode(tokens)
        ctx.clear()
        assert np.array_equal(ctx.decode(tokens), first)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "twisted"}, "which this version does not know"),
        ({"heads": [2, 32, 64, 2, 32, 64]}, "wrong size"),
        ({"groups": [2, 3, 3, 4]}, "layer 3 is in two groups"),
        ({"group_sizes": [1, 3]}, "not of two layers"),
        ({"basis": np.full((2, 2, 32, 32), 0.5, np.float32)}, "not orthogonal"),
        ({"basis": np.full((2, 2, 32, 32), np.nan, np.float32)}, "not orthogonal"),
        ({"basis": np.zeros((3, 2, 32, 32), np.float32)}, "wrong size"),
    ],
    ids=["mode", "heads", "groups", "group sizes", "scaled", "nan", "layers"],
)
def test_a_damaged_plan_is_refused(
    load: Callable[..., Loaded], plan: Path, changes: dict[str, object], reason: str
) -> None:
    loaded = load(tiny_models.random_model)
    config = aligned(loaded, Config(((2, 3), (4, 5))), plan)
    basis = changes.pop("basis", None)
    if isinstance(basis, np.ndarray):
        config = replace(
            config,
            basis_matrices=(
                BasisMatrices(tuple(basis), config.basis_matrices[0].v),
                *config.basis_matrices[1:],
            ),
        )
    write_plan(loaded, config, **changes)
    assert reason in refusal(loaded, plan)


@pytest.mark.parametrize("sides", [1, 2])
def test_the_report_counts_basis_matrices(load: Callable[..., Loaded], plan: Path, sides: int) -> None:
    loaded = load(tiny_models.random_model, n_layer=4, head_size=64)
    config = aligned(
        loaded, Config(ALL, retain=0.1, type_k="q8_0", type_v="q4_0", n_cells=512), plan, sides=sides
    )
    with Context.of(loaded.model, config) as ctx:
        report = ctx.report()
    assert (report.mode, report.t, report.rope_block) == ("aligned", pytest.approx(0.6), None)
    # the basis matrices of K, of V, and those of V transposed
    assert report.bytes_codec == 2 * sides * 3 * loaded.tiny.shape.n_head_kv * 64 * 64 * 4
    assert report.fixed_bytes >= report.bytes_codec
    assert report.ratio == pytest.approx(report.bytes_f16 / (report.bytes - report.fixed_bytes))
    assert "basis matrices" in str(report)
    shape = model_shape(read_gguf(loaded.path))
    assert kv_bytes(shape, CacheSpec.parse(str(plan)), 512) == report.bytes


def test_minicache_shows_the_settings_of_its_plan(random_model: Loaded, plan: Path) -> None:
    aligned(random_model, Config(random_model.pairs, t=0.3, retain=0.1, type_k="q8_0"), plan)
    minicache = MiniCache(plan=str(plan))
    assert (minicache.mode, minicache.type_k, minicache.retain) == ("aligned", "q8_0", pytest.approx(0.1))
    assert minicache.t == pytest.approx(0.3)
    assert CacheSpec.parse(str(plan)).minicache == minicache

"""Model families: what grows of their caches is merged or coded, beside windows and states that stay upstream's.

Upstream's own f16 cache is what they are compared with. Retaining all tokens loses nothing; exact codes lose the
rounding of magnitudes and levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from oracle.model import Config
from support.contexts import Context, interleaved, llama_cpp, nmse, run
from support.family_caches import CODED_BOUND, LoadedFamily, assert_agrees, is_shift
from support.family_models import FAMILIES
from support.scenarios import CASES, Memory, Result, copy_then_diverge, divide_positions, take_turns
from support.tiny_models import prompt

CODED = [name for name, family in FAMILIES.items() if family.coded]
# one of each kind of memory, with all that is special about attention: sinks, soft caps, caches that are read twice
CHOSEN = ["gemma3", "gemma4-shared", "gpt-oss", "qwen3vl", "stablelm"]
HYBRIDS = ["qwen35", "falcon-h1", "lfm2"]


@pytest.mark.parametrize("kind", ["kept", "coded"])
@pytest.mark.parametrize("name", CODED)
def test_a_family_agrees_with_upstream(
    families: Callable[[str], LoadedFamily], tmp_path: Path, name: str, kind: str
) -> None:
    """A prompt that is longer than the windows, in several ubatches, then one token at a time, in two sequences."""
    loaded = families(name)
    config = Config(n_ubatch=32, n_seq_max=2, unified=False, n_cells=512)
    cache, bound = loaded.cache(kind, config, tmp_path / "plan.gguf")

    def read(m: Memory, seed: int) -> Result:
        first = m.decode(interleaved([prompt(150, seed), prompt(150, seed + 1)]))
        more = interleaved([prompt(12, seed + 2), prompt(12, seed + 3)], first=150)
        return [first, *(m.decode([token]) for token in more)]

    assert_agrees(loaded, cache, read, bound, swa_full=False)


def operations() -> Iterator[tuple[str, Callable[[Memory, int], Result], bool, str]]:
    """What upstream can be compared with: the family, the scenario, whether sequences share a stream, and the cache."""
    for name in CHOSEN:
        yarn, sections = (
            f"rope.{key}" in FAMILIES[name].values for key in ("scaling.type", "dimension_sections")
        )
        for (scenario, unified), kind in itertools.product(CASES, ("kept", "coded")):
            # with YaRN, upstream lengthens K at every shift; where positions are divided, it turns K the other way
            differs = (yarn and is_shift(scenario)) or (scenario is divide_positions and kind == "coded")
            # positions of several sections cannot be shifted
            if not differs and not (sections and is_shift(scenario)):
                yield name, scenario, unified, kind


@pytest.mark.parametrize(("name", "scenario", "unified", "kind"), list(operations()))
def test_operations_agree_with_upstream(
    families: Callable[[str], LoadedFamily],
    tmp_path: Path,
    name: str,
    scenario: Callable[[Memory, int], Result],
    unified: bool,
    kind: str,
) -> None:
    """Positions can be shifted only where sliding windows are as long as the context."""
    loaded = families(name)
    config = Config(n_ubatch=16, n_seq_max=2, unified=unified, n_cells=512)
    cache, bound = loaded.cache(kind, config, tmp_path / "plan.gguf", window=5)
    assert_agrees(loaded, cache, scenario, bound, swa_full=is_shift(scenario))


@pytest.mark.parametrize("swa_full", [False, True])
@pytest.mark.parametrize("name", [*CHOSEN, *HYBRIDS])
def test_positions_can_be_shifted_where_upstream_can(
    families: Callable[[str], LoadedFamily], tmp_path: Path, name: str, swa_full: bool
) -> None:
    loaded = families(name)
    config = loaded.coded(Config(n_cells=512), tmp_path / "plan.gguf")
    with (
        Context.of(loaded.model, config, swa_full=swa_full) as ctx,
        Context.of(loaded.model, replace(config, groups=(), plan=""), swa_full=swa_full) as plain,
    ):
        assert llama_cpp.llama_memory_can_shift(ctx.memory) == llama_cpp.llama_memory_can_shift(plain.memory)


@pytest.mark.parametrize("name", ["gpt-oss", "olmo3"])
def test_a_shift_keeps_the_length_of_exact_k(
    families: Callable[[str], LoadedFamily], tmp_path: Path, name: str
) -> None:
    """With YaRN too, whose RoPE lengthens K: exact tokens go on as codes do, which no shift touches."""
    loaded = families(name)
    results = []
    for window in (128, 0):
        config = loaded.coded(Config(n_ubatch=16), tmp_path / f"{window}.gguf", window=window)
        with Context.of(loaded.model, config, swa_full=True) as ctx:
            ctx.decode(run(prompt(60)))
            for first in (60, 64, 68, 72):
                ctx.seq_add(0, 0, -1, 3)
                ctx.decode(run(prompt(1), first + 3))
            results.append(ctx.decode(run(prompt(20, 1), 76)))
    assert np.median([nmse(one, other) for one, other in zip(*results, strict=True)]) <= CODED_BOUND


def clear_and_read(m: Memory, seed: int) -> Result:
    m.decode(run(prompt(60, seed)))
    m.clear()
    return [m.decode(run(prompt(50, seed + 1)))]


def remove_a_sequence(m: Memory, seed: int) -> Result:
    m.decode(interleaved([prompt(40, seed), prompt(40, seed + 1)]))
    m.seq_rm(0, -1, -1)
    first = m.decode(run(prompt(30, seed + 2)))
    return [first, m.decode(run(prompt(10, seed + 3), 40, seq=1))]


@pytest.mark.parametrize("kind", ["kept", "coded"])
@pytest.mark.parametrize("scenario", [take_turns, copy_then_diverge, clear_and_read, remove_a_sequence])
@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids_agree_with_upstream(
    families: Callable[[str], LoadedFamily],
    tmp_path: Path,
    name: str,
    scenario: Callable[[Memory, int], Result],
    unified: bool,
    kind: str,
) -> None:
    """The operations that a recurrent state can do: all but dropping a part of a sequence, and shifts."""
    loaded = families(name)
    config = Config(n_ubatch=16, n_seq_max=2, unified=unified)
    cache, bound = loaded.cache(kind, config, tmp_path / "plan.gguf", window=5)
    assert_agrees(loaded, cache, scenario, bound, swa_full=False)


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_refuses_to_drop_a_part_and_keeps_all_of_it(
    families: Callable[[str], LoadedFamily], tmp_path: Path, name: str
) -> None:
    loaded = families(name)
    config = loaded.coded(Config(), tmp_path / "plan.gguf")
    with Context.of(loaded.model, config) as ctx, Context.of(loaded.model, config) as untouched:
        for one in (ctx, untouched):
            one.decode(run(prompt(40)))
        assert not ctx.seq_rm(0, 20, -1)
        assert ctx.positions(0)[1] == 39
        tokens = run(prompt(10, 1), 40)
        assert np.array_equal(ctx.decode(tokens), untouched.decode(tokens))


def test_a_hybrid_that_keeps_snapshots_drops_its_latest_tokens(
    families: Callable[[str], LoadedFamily], tmp_path: Path
) -> None:
    """As for drafts that are not accepted: upstream keeps the recurrent state of some tokens back."""
    loaded = families("qwen35")
    config = loaded.coded(Config(n_ubatch=64), tmp_path / "plan.gguf", window=5)
    results = []
    for one in (config, replace(config, groups=(), plan="")):
        with Context.of(loaded.model, one, n_rs_seq=4) as ctx:
            ctx.decode(run(prompt(40)))
            ctx.decode(run(prompt(4, 1), 40))
            assert ctx.seq_rm(0, 42, -1)
            results.append(ctx.decode(run(prompt(10, 2), 42)))
    assert nmse(*results) <= CODED_BOUND


@pytest.mark.parametrize("name", CODED)
def test_the_shape_says_what_grows(families: Callable[[str], LoadedFamily], name: str) -> None:
    loaded = families(name)
    family, shape = loaded.family, model_shape(read_gguf(loaded.path))
    assert not shape.unknown
    of_kind = {
        kind: tuple(
            number for number, layer in enumerate(shape.layers) if layer.kind == kind and layer.n_head_kv
        )
        for kind in ("grows", "window")
    }
    assert of_kind == {"grows": family.grows, "window": family.window}
    stateful = tuple(number for number, layer in enumerate(shape.layers) if layer.state_bytes)
    assert stateful == family.recurrent

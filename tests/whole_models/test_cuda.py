"""Whole models whose merged layers are computed by the CUDA kernels, on devices whose memory the host cannot reach.

The kernels run on the CPU (tests/native/cuda-on-cpu). Everything around them is as on a GPU: where tensors lie, how
graphs are split, what is copied, what falls back to the CPU and how errors are reported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import MiniCache
from oracle.cells import Token
from oracle.model import Config
from support import tiny_models
from support.assertions import (
    assert_a_sequence_continues,
    assert_a_state_continues,
    assert_graphs_are_reused,
    assert_matches_the_oracle,
)
from support.bounds import MARGIN_ON_A_DEVICE, TIED_BOUND
from support.contexts import Context, Logits, captured_log, interleaved, nmse, repeated, run
from support.cuda_on_cpu import Devices, devices
from support.family_caches import LoadedFamily
from support.loaded import Loaded
from support.oracle_runs import clear_cut, oracle_run
from support.plans import ALL_PAIRS, LAYER_TYPES, Groups, aligned, coded, plain
from support.scenarios import CASES, Memory, Result, copy_then_diverge, shift_context, take_turns
from support.tiny_models import prompt

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fibers need Linux")

# The kernels' queries, unpacked rows and weights are f16. Where stored rows round to another level because of that,
# the error is larger.
F16_BOUND = 1e-5
BOUNDS = {"f16": F16_BOUND, "bf16": 3e-5, "q8_0": 3e-4, "q4_0": 1e-2, "iq4_nl": 1e-2}

GROUPS: Groups = ((0, 1), (2, 3, 4, 5))


def on_device(device: Devices, loaded: Loaded, config: Config, tokens: list[Token]) -> Logits:
    """Decodes `tokens` with every MiniCache op on the device, and returns the logits."""
    with device.holding(loaded) as held, Context.of(held.model, config) as ctx:
        report = ctx.report()
        assert report.fallback == "" and report.groups == list(config.groups)
        before = device.computed()
        result = ctx.decode(tokens)
    # at least a merge or an encode for each group and an attention for each of its layers
    n_ubatches = -(-len(tokens) // config.n_ubatch)
    n_ops = n_ubatches * sum(1 + len(group) for group in config.groups)
    assert device.computed() - before >= n_ops
    return result


@pytest.mark.parametrize("name", ["gemma3", "gpt-oss", "gemma4-shared", "qwen35"])
def test_what_grows_of_a_mixed_model_is_on_the_device(device: Devices, tmp_path: Path, name: str) -> None:
    loaded = LoadedFamily(name, tmp_path / "model.gguf")
    config = loaded.coded(Config(n_ubatch=16), tmp_path / "plan.gguf", window=5)
    tokens = run(prompt(60))
    with Context.of(loaded.model, config, swa_full=False) as ctx:
        expected = repeated(ctx.decode, tokens, 20)
    with device.holding(loaded) as held, Context.of(held.model, config, swa_full=False) as ctx:
        assert ctx.report().fallback == ""
        before = device.computed()
        result = repeated(ctx.decode, tokens, 20)
        assert device.computed() > before
    assert np.median([nmse(one, other) for one, other in zip(result, expected, strict=True)]) <= TIED_BOUND


@pytest.mark.parametrize("chunk", [1, 40])
@pytest.mark.parametrize(
    ("head_size", "kind"), [(64, kind) for kind in BOUNDS] + [(80, "f16"), (128, "q4_0"), (512, "q8_0")]
)
def test_directions_match_the_oracle(
    load: Callable[..., Loaded], device: Devices, head_size: int, kind: str, chunk: int
) -> None:
    loaded = load(tiny_models.random_model, head_size=head_size)
    config = Config(loaded.pairs, type_k=kind, type_v=kind, pool_type="f16", n_ubatch=chunk)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(80, seed)))
    assert nmse(on_device(device, loaded, config, tokens), expected) <= BOUNDS[kind]


@pytest.mark.parametrize("window", [5, 24])
@pytest.mark.parametrize("n_ubatch", [1, 16, 60])
def test_retained_tokens_match_the_oracle(
    random_model: Loaded, device: Devices, n_ubatch: int, window: int
) -> None:
    """A window of 24 keeps its first token for good, and is full long before the end."""
    config = Config(random_model.pairs, retain=0.1, window=window, pool_type="f16", n_ubatch=n_ubatch)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(80, seed)), MARGIN_ON_A_DEVICE)
    assert nmse(on_device(device, random_model, config, tokens), expected) <= F16_BOUND
    for other in (replace(config, retain=0.0), replace(config, window=window - 1), replace(config, t=0.5)):
        assert nmse(oracle_run(random_model, other, tokens)[0], expected) > 20 * F16_BOUND


@pytest.mark.parametrize(
    ("head_size", "groups", "n_ubatch"),
    [(*one, n_ubatch) for one in ((32, GROUPS), (64, GROUPS), (128, ALL_PAIRS)) for n_ubatch in (1, 7, 40)]
    + [(512, ALL_PAIRS, 7)],
)
def test_codes_match_the_oracle(
    load: Callable[..., Loaded], device: Devices, plan: Path, head_size: int, groups: Groups, n_ubatch: int
) -> None:
    loaded = load(tiny_models.random_model, head_size=head_size)
    config = coded(loaded, Config(groups, retain=0.1, window=24, n_ubatch=n_ubatch), plan)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(50, seed)))
    assert nmse(on_device(device, loaded, config, tokens), expected) <= TIED_BOUND


@pytest.mark.parametrize("n_ubatch", [1, 40])
@pytest.mark.parametrize("head_size", [64, 96])
def test_plain_layers_match_the_oracle(
    load: Callable[..., Loaded], device: Devices, plan: Path, head_size: int, n_ubatch: int
) -> None:
    """Our attention takes the layers that upstream's flash attention on GPUs cannot read directly: five of six."""
    loaded = load(tiny_models.random_model, head_size=head_size)
    config = plain(loaded, Config(n_ubatch=n_ubatch, plain=LAYER_TYPES), plan)
    tokens = run(prompt(60))
    expected, _ = oracle_run(loaded, config, tokens)
    with device.holding(loaded) as held, Context.of(held.model, config) as ctx:
        assert ctx.report().fallback == ""
        before = device.computed()
        assert nmse(ctx.decode(tokens), expected) <= BOUNDS["q4_0"]
        assert device.computed() - before == len(LAYER_TYPES) * -(-len(tokens) // n_ubatch)


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_plain_layers_of_one_type_are_upstreams(random_model: Loaded, device: Devices, kind: str) -> None:
    config = Config(random_model.pairs, type_k=kind, type_v=kind)
    with device.holding(random_model) as held, Context.of(held.model, config) as ctx:
        before = device.computed()
        ctx.decode(run(prompt(20)))
        # two attentions, a merge and its distances
        assert device.computed() - before == 4 * len(random_model.pairs)


@pytest.mark.parametrize("arch", ["qwen2", "refact"])
def test_other_position_encodings(
    load: Callable[..., Loaded], device: Devices, plan: Path, arch: str
) -> None:
    """RoPE over halves, and ALiBi without RoPE."""
    loaded = load(tiny_models.random_model, arch=arch)
    config = coded(loaded, Config(GROUPS, retain=0.1, n_ubatch=16), plan)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(70, seed), 37))
    assert nmse(on_device(device, loaded, config, tokens), expected) <= TIED_BOUND


def test_basis_matrices_match_the_oracle(load: Callable[..., Loaded], device: Devices, plan: Path) -> None:
    loaded = load(tiny_models.random_model, head_size=64)
    config = aligned(loaded, Config(((0, 1), (4, 5)), retain=0.1, n_ubatch=16), plan)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(70, seed)))
    assert nmse(on_device(device, loaded, config, tokens), expected) <= F16_BOUND


@pytest.mark.parametrize(
    ("kind", "scenario", "unified"),
    [("slerp", *case) for case in CASES]
    + [("codes", *case) for case in CASES if case[0] in (copy_then_diverge, shift_context, take_turns)],
)
def test_operations_match_the_oracle(
    load: Callable[..., Loaded],
    device: Devices,
    plan: Path,
    kind: str,
    scenario: Callable[[Memory, int], Result],
    unified: bool,
) -> None:
    loaded = load(tiny_models.random_model, head_size=32 if kind == "codes" else 64)
    base = Config(GROUPS, retain=0.1, window=24, n_ubatch=16, n_seq_max=2, unified=unified)
    slerp = replace(base, groups=loaded.pairs, type_k="q8_0", type_v="q8_0")
    config = coded(loaded, base, plan) if kind == "codes" else slerp

    def together(m: Memory, seed: int) -> Result:
        # one level at a tie matters much for a single token, and little for all of them together
        return [np.concatenate(scenario(m, seed))]

    with device.holding(loaded) as held:
        before = device.computed()
        assert_matches_the_oracle(held, config, together, TIED_BOUND if kind == "codes" else BOUNDS["q8_0"])
        assert device.computed() > before


@pytest.mark.parametrize("unified", [True, False])
def test_saved_states_continue(random_model: Loaded, device: Devices, plan: Path, unified: bool) -> None:
    base = Config(GROUPS, retain=0.1, window=24, n_ubatch=16, n_seq_max=2, unified=unified)
    config = coded(random_model, base, plan)
    with device.holding(random_model) as held:
        assert_a_state_continues(held, config, 2)
        assert_a_sequence_continues(held, config, TIED_BOUND)


@pytest.mark.parametrize("to_device", [True, False])
def test_a_state_moves_between_devices(
    random_model: Loaded, device: Devices, plan: Path, to_device: bool
) -> None:
    config = coded(random_model, Config(GROUPS, retain=0.1, window=9, n_ubatch=16), plan)
    with device.holding(random_model) as held:
        models = random_model.model, held.model
        source, target = models if to_device else models[::-1]
        with Context.of(source, config) as one, Context.of(target, config) as other:
            one.decode(run(prompt(60)))
            assert other.restore(one.state())
            tokens = run(prompt(20, 1), 60)
            results = [repeated(ctx.decode, tokens, 1) for ctx in (one, other)]
    assert nmse(*results) <= TIED_BOUND


def test_graphs_are_reused(random_model: Loaded, device: Devices, plan: Path) -> None:
    config = coded(random_model, Config(GROUPS, retain=0.1, window=9), plan)
    with device.holding(random_model) as held:
        assert_graphs_are_reused(held, config)


def test_two_runs_are_the_same(random_model: Loaded, device: Devices, plan: Path) -> None:
    config = coded(random_model, Config(GROUPS, retain=0.1, n_ubatch=16, n_seq_max=3), plan)
    tokens = interleaved([prompt(40, seed) for seed in range(3)])
    results = [on_device(device, random_model, config, tokens) for _ in range(2)]
    assert np.array_equal(*results)


@pytest.mark.parametrize("n_gpu_layers", range(8))
def test_some_layers_on_the_device(random_model: Loaded, device: Devices, n_gpu_layers: int) -> None:
    """The last layers of six lie there, then the output too. A pair across the border stays plain."""
    first = 6 - min(6, max(0, n_gpu_layers - 1))  # the output counts as a layer
    merged = tuple(pair for pair in ALL_PAIRS if pair[0] >= first or pair[1] < first)
    there = [pair for pair in merged if pair[0] >= first]
    config = Config(merged, retain=0.1, n_ubatch=16)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(60, seed)))
    with device.holding(random_model, n_gpu_layers) as held:
        wanted = MiniCache(pairs=ALL_PAIRS, retain=0.1, type_k="f16", type_v="f16")
        with Context(held.model, wanted, n_ubatch=16) as ctx:
            report = ctx.report()
            assert report.groups == list(merged)
            for pair in set(ALL_PAIRS) - set(merged):
                for layer in pair:
                    assert report.layers[layer].kind == "refused"
                    assert "different devices: CPU and cuda-on-cpu0" in report.layers[layer].reason
            before = device.computed()
            assert nmse(ctx.decode(tokens), expected) <= F16_BOUND
            assert (device.computed() > before) == bool(there)
            assert report.fallback == ""


@pytest.mark.parametrize("n_ubatch", [16, 512])
def test_two_devices(random_model: Loaded, plan: Path, n_ubatch: int) -> None:
    """Two devices compute different ubatches at the same time. A group across both stays plain."""
    config = coded(random_model, Config(GROUPS, retain=0.1, window=5, n_ubatch=n_ubatch), plan)
    tokens, _ = clear_cut(random_model, config, lambda seed: run(prompt(60, seed)))
    wanted = MiniCache(plan=plan)
    with (
        devices(count=2) as two,
        two.holding(random_model) as held,
        captured_log() as lines,
        Context(held.model, wanted, n_ubatch=n_ubatch) as ctx,
    ):
        report = ctx.report()
        refused = [layer.reason for layer in report.layers if layer.kind == "refused"]
        before = two.computed()
        result = ctx.decode(tokens)
        n_ops = two.computed() - before
    assert any("pipeline parallelism enabled" in text for _, text in lines)
    assert report.groups == [(0, 1)] and len(refused) == 4
    assert all("cuda-on-cpu0 and cuda-on-cpu1" in reason for reason in refused)
    # an index, an encode, a retain, and an attention for each of two layers
    assert n_ops == 5 * -(-60 // n_ubatch)
    merged = replace(config, groups=config.groups[:1], codecs=config.codecs[:1])
    assert nmse(result, oracle_run(random_model, merged, tokens)[0]) <= TIED_BOUND


def test_the_cache_can_stay_in_main_memory(random_model: Loaded, device: Devices, plan: Path) -> None:
    """With offload_kqv=False the cache is in main memory although the layers are on the device."""
    config = coded(random_model, Config(GROUPS, retain=0.1, window=5, n_ubatch=16), plan)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(80, seed)))
    with device.holding(random_model) as held:
        before = device.computed()
        with Context.of(held.model, config, offload_kqv=False) as ctx:
            assert ctx.report().fallback == ""
            assert nmse(ctx.decode(tokens), expected) <= TIED_BOUND
        assert device.computed() == before


def test_unsupported_ops_run_on_the_cpu(load: Callable[..., Loaded], device: Devices) -> None:
    """The log names it, once."""
    loaded = load(tiny_models.random_model, head_size=40)
    config = Config(ALL_PAIRS, retain=0.1, pool_type="f16", n_ubatch=16)
    tokens, expected = clear_cut(loaded, config, lambda seed: run(prompt(60, seed)))
    with device.holding(loaded) as held:
        before = device.computed()
        with captured_log() as lines, Context.of(held.model, config) as ctx:
            report = ctx.report()
            assert nmse(ctx.decode(tokens), expected) <= F16_BOUND
        # the merge itself works for any head size, and reads nothing of the cache
        assert device.computed() == before + len(ALL_PAIRS) * -(-len(tokens) // config.n_ubatch)
    assert report.fallback == "cuda-on-cpu0 has no MiniCache kernels for attention (head size 40, f16, f16)"
    assert report.fallback in str(report)
    assert sum(report.fallback in text for _, text in lines) == 1


def test_unsupported_plain_layers_run_on_the_cpu(load: Callable[..., Loaded], device: Devices) -> None:
    loaded = load(tiny_models.random_model, head_size=544, n_layer=4)
    config = Config(((2, 3),), type_k="iq4_nl", type_v="iq4_nl", n_ubatch=16)
    tokens = run(prompt(40))
    expected, _ = oracle_run(loaded, config, tokens)
    with device.holding(loaded) as held, captured_log() as lines, Context.of(held.model, config) as ctx:
        fallback = ctx.report().fallback
        assert nmse(ctx.decode(tokens), expected) <= BOUNDS["q4_0"]
    assert fallback == "cuda-on-cpu0 has no attention over plain layers (head size 544, iq4_nl, iq4_nl)"
    assert sum("attention of these layers runs on the CPU" in text for _, text in lines) == 1

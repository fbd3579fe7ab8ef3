"""Pairs averaged: whole models against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from minicache_cpp import CacheSpec, MiniCache
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.errors import MiniCacheError
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from oracle.model import Config
from support import tiny_models
from support.assertions import assert_matches_the_oracle
from support.bounds import F16_BOUND, QUANTIZED_BOUND
from support.contexts import Context, nmse, run
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native, oracle_run
from support.scenarios import CASES, Memory, Result
from support.tiny_models import prompt


@pytest.mark.parametrize(("retain", "n_ubatch"), [(0.0, 1), (0.0, 16), (0.1, 7)])
def test_averages_match_the_oracle(random_model: Loaded, retain: float, n_ubatch: int) -> None:
    config = Config(random_model.pairs, retain=retain, n_ubatch=n_ubatch, average=True)
    tokens, expected = clear_cut(random_model, config, lambda seed: run(prompt(90, seed)))
    assert nmse(native(random_model, config, tokens), expected) <= F16_BOUND
    for wrong in (replace(config, average=False), replace(config, average=False, t=0.5)):
        assert nmse(oracle_run(random_model, wrong, tokens)[0], expected) > 20 * F16_BOUND


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize(("scenario", "unified"), CASES)
def test_operations_on_averages_match_the_oracle(
    load: Callable[..., Loaded], scenario: Callable[[Memory, int], Result], unified: bool, kind: str
) -> None:
    """Turning a mean is the mean of both vectors turned, so averages can be shifted."""
    loaded = load(tiny_models.random_model, head_size=64)
    config = Config(
        loaded.pairs, type_k=kind, type_v=kind, n_ubatch=16, n_seq_max=2, unified=unified, average=True
    )
    assert_matches_the_oracle(loaded, config, scenario, F16_BOUND if kind == "f16" else QUANTIZED_BOUND)


def test_averages_take_half_of_plain_layers(load: Callable[..., Loaded]) -> None:
    loaded = load(tiny_models.random_model, n_layer=4)
    with Context(loaded.model, MiniCache.parse("average:start=0"), n_ctx=512) as ctx:
        ctx.decode(run(prompt(20)))
        report = ctx.report()
    assert (report.mode, report.t, report.bytes_magnitudes) == ("average", None, 0)
    assert report.ratio == pytest.approx(2, rel=0.01)
    assert report.distance == pytest.approx(0.5, abs=0.1)
    shape = model_shape(read_gguf(loaded.path))
    assert kv_bytes(shape, CacheSpec.parse("average:start=0"), 512) == report.bytes


def test_average_as_a_spec(random_model: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    minicache = MiniCache.parse("average:start=0.5,type=q4_0")
    assert (minicache.mode, minicache.retain, minicache.type_k) == ("average", 0.0, "q4_0")
    assert minicache.spec() == "average:start=0.5,retain=0.0,type=q4_0"
    assert CacheSpec.parse(minicache.spec()).minicache == minicache
    with pytest.raises(MiniCacheError, match="none of slerp, average, plain"):
        MiniCache(mode="aligned")

    tokens = run(prompt(60))
    with Context(random_model.model, MiniCache.parse("average:start=0.5"), n_ubatch=16) as ctx:
        expected = ctx.decode(tokens)
    monkeypatch.setenv("LLAMA_MINICACHE", "start=0.5,mode=average")
    monkeypatch.setattr("minicache_cpp.cache.contexts.use_off", lambda: None)
    assert np.array_equal(native(random_model, Config(n_ubatch=16), tokens), expected)

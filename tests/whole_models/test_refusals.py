"""What cannot be merged is refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import MiniCache
from support import contexts, tiny_models
from support.contexts import Context, ContextRefused, captured_log, run
from support.family_models import FAMILIES
from support.loaded import Loaded
from support.tiny_models import prompt

WARNING = 3


def test_a_start_layer_without_a_pair_is_a_plain_cache_with_a_warning(random_model: Loaded) -> None:
    with captured_log() as lines, Context(random_model.model, MiniCache(start=5)) as ctx:
        report = ctx.report()
        assert not report.active
        assert report.pairs == []
        assert report.note
        assert report.bytes == report.bytes_plain
    assert any(level >= WARNING and "merged" in text for level, text in lines)
    with pytest.raises(ContextRefused, match="merged"):
        Context(random_model.model, MiniCache(start=5, strict=True))


@pytest.mark.parametrize(
    ("minicache", "reason"),
    [
        (MiniCache(pairs=[(4, 99)]), r"99 is out of range.*0 to 5"),
        (MiniCache(start=6), r"6 is out of range.*0 to 5"),
        (MiniCache(pairs=[(5, 6)]), r"6 is out of range.*0 to 5"),
    ],
)
def test_layers_that_are_not_there_are_refused(
    random_model: Loaded, minicache: MiniCache, reason: str
) -> None:
    with pytest.raises(ContextRefused, match=reason):
        Context(random_model.model, minicache)


def test_flash_attention_off_is_refused(random_model: Loaded) -> None:
    with pytest.raises(ContextRefused, match="flash attention"):
        Context(random_model.model, MiniCache(), flash_attn=0)
    with Context(random_model.model, MiniCache(), flash_attn=-1) as ctx:  # -1: llama.cpp decides
        assert ctx.report().active


def test_a_pool_type_that_does_not_fit_the_heads_is_f16(load: Callable[..., Loaded]) -> None:
    loaded = load(tiny_models.random_model, head_size=16, n_layer=4)
    results = []
    for minicache in (MiniCache(), MiniCache(pool_type="f16")):
        with Context(loaded.model, minicache) as ctx:
            assert ctx.report().active
            assert ctx.report().pool_type == "f16"
            results.append(ctx.decode(run(prompt(60))))
    assert np.array_equal(*results)


@pytest.mark.parametrize(("name", "word"), [("deepseek2", "latent"), ("mamba", "recurrent")])
def test_a_model_without_rows_of_k_and_v_stays_plain_and_says_why(
    tmp_path: Path, name: str, word: str
) -> None:
    model = contexts.Model(FAMILIES[name].write(tmp_path / "refused.gguf"))
    tokens = run(prompt(100))
    with captured_log() as lines, Context(model, MiniCache(), n_ctx=256) as ctx:
        report = ctx.report()
        assert not report.active
        assert word in report.note
        result = ctx.decode(tokens)
    assert any(level >= WARNING and word in text for level, text in lines)
    with Context(model, n_ctx=256) as ctx:
        assert np.array_equal(ctx.decode(tokens), result)
    with pytest.raises(ContextRefused, match=word):
        Context(model, MiniCache(strict=True), n_ctx=256)


def test_a_sliding_window_layer_is_not_merged(tmp_path: Path) -> None:
    model = contexts.Model(FAMILIES["gemma2"].write(tmp_path / "window.gguf"))
    window, grows = FAMILIES["gemma2"].window, FAMILIES["gemma2"].grows
    with Context(model, MiniCache(pairs=[window[:2], grows[:2]]), n_ctx=256) as ctx:
        report = ctx.report()
    assert report.groups == [grows[:2]]
    assert report.layers[window[0]].kind == "window"
    with pytest.raises(ContextRefused, match="sliding-window layers are not merged"):
        Context(model, MiniCache(pairs=[window[:2]], strict=True), n_ctx=256)


def test_a_refused_context_leaves_the_thread_as_it_was(random_model: Loaded) -> None:
    with pytest.raises(ContextRefused):
        Context(random_model.model, MiniCache(pairs=[(4, 99)]))
    with Context(random_model.model) as ctx:
        assert not ctx.report().active
    with Context(random_model.model, MiniCache()) as ctx:
        assert ctx.report().active

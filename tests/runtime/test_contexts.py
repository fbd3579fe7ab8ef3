"""Which contexts `Llama` makes and refuses, and that its settings do not outlast them."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError, MiniCacheWarning
from minicache_cpp.cache.context_report import read_report
from support.family_models import FAMILIES
from support.llamas import SETTINGS

import llama_cpp  # isort: skip  (after minicache_cpp, so that it loads our library)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"minicache": "auto", "calibrate": "always"}, "'once', 'background' and 'never'"),
        ({"minicache": "plan.gguf"}, "does not exist"),
        ({"minicache": 0.5}, "MiniCache"),
        ({"minicache": MiniCache(), "flash_attn": False}, "flash"),
        ({"minicache": MiniCache(type_k="q8_0"), "type_k": "q4_0"}, "q4_0"),
        ({"minicache": MiniCache(), "type_v": 8}, "q8_0"),
        ({"type_k": "q3_0"}, "q8_0"),
        ({"type_k": 999}, "q8_0 (8)"),
        ({"type_v": "q8_0"}, "flash_attn=True"),
        ({"minicache": MiniCache(start=6)}, "0 to 5"),
        ({"minicache": MiniCache(pairs=[(4, 6)])}, "0 to 5"),
        ({"minicache": MiniCache(start=5, strict=True)}, "strict"),
    ],
)
def test_impossible_contexts_are_refused(path: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(MiniCacheError, match=re.escape(words)):
        Llama(path, **SETTINGS, **arguments)


def test_a_missing_model_is_llama_cpps_own_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Llama(str(tmp_path / "none.gguf"), verbose=False)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a GGUF file"),
        (b"no model", "is not a GGUF file"),
        (None, "is a directory"),
    ],
)
def test_what_is_no_model_is_named(content: bytes | None, words: str, tmp_path: Path) -> None:
    """llama.cpp says only that it failed to load it."""
    path = tmp_path / "model.gguf"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for minicache in (None, MiniCache()):
        with pytest.raises(MiniCacheError, match=words):
            Llama(str(path), minicache=minicache, **SETTINGS)


def test_empty_paths_are_refused(path: str) -> None:
    with pytest.raises(MiniCacheError, match="the model's path is empty"):
        Llama("", **SETTINGS)
    with pytest.raises(MiniCacheError, match="the path is empty"):
        Llama(path, minicache=MiniCache(plan=""), **SETTINGS)


def test_plain_cache_types_go_by_name_and_by_number(path: str) -> None:
    for types in ({"type_k": "q8_0", "type_v": "q4_0"}, {"type_k": 8, "type_v": 2}):
        with Llama(path, flash_attn=True, **types, **SETTINGS) as llm:
            report = llm.kv_report()
        assert (report.type_k, report.type_v, report.active) == ("q8_0", "q4_0", False)
        assert report.bytes == report.bytes_plain < report.bytes_f16


def test_without_minicache_the_cache_is_plain_in_any_environment(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_MINICACHE", "slerp:start=0")
    with Llama(path, **SETTINGS) as llm:
        assert not llm.kv_report().active
    upstream = llama_cpp.Llama(path, flash_attn=True, **SETTINGS)
    # the environment decides again about this thread's next contexts
    assert read_report(upstream.ctx).active
    upstream.close()


def test_settings_do_not_outlast_their_context(path: str) -> None:
    with Llama(path, minicache=MiniCache(), **SETTINGS) as llm:
        assert llm.kv_report().active
    with pytest.raises(MiniCacheError):
        Llama(path, minicache=MiniCache(start=99), **SETTINGS)
    upstream = llama_cpp.Llama(path, **SETTINGS)
    assert not read_report(upstream.ctx).active
    upstream.close()


def test_threads_have_their_own_settings(path: str) -> None:
    wanted = [None, MiniCache(start=0), MiniCache(start=4), None, MiniCache(start=2)]
    found: list[object] = [None] * len(wanted)

    def make(i: int) -> None:
        with Llama(path, minicache=wanted[i], **SETTINGS) as llm:
            found[i] = llm.kv_report().pairs

    threads = [threading.Thread(target=make, args=(i,)) for i in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[], [(0, 1), (2, 3), (4, 5)], [(4, 5)], [], [(2, 3), (4, 5)]]


def test_a_latent_cache_is_plain_with_the_reason(tmp_path: Path) -> None:
    model = str(FAMILIES["deepseek2"].write(tmp_path / "latent.gguf"))
    with pytest.warns(MiniCacheWarning, match="latent form .*; this model's cache is a plain one, of f16"):
        llm = Llama(model, minicache=MiniCache(), **SETTINGS)
    with llm:
        report = llm.kv_report()
    assert not report.active
    assert report.note
    assert "latent" in str(report)
    with pytest.raises(MiniCacheError):
        Llama(model, minicache=MiniCache(strict=True), **SETTINGS)

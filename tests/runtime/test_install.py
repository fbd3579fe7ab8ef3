"""Frameworks that make their llama_cpp.Llama themselves get the cache without changes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import llama_cpp
import pytest

import minicache_cpp
from minicache_cpp import Llama, MiniCache
from support.loaded import Loaded

SETTINGS: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "verbose": False}


@pytest.fixture(autouse=True)
def llama_cpps_own_class() -> Iterator[type[llama_cpp.Llama]]:
    own = llama_cpp.Llama
    yield own
    minicache_cpp.uninstall()
    assert llama_cpp.Llama is own
    assert llama_cpp.llama.Llama is own


def framework(path: str, **arguments: Any) -> llama_cpp.Llama:
    """What a framework does."""
    from llama_cpp import Llama as TheirLlama

    return TheirLlama(model_path=path, **SETTINGS, **arguments)


def test_a_framework_gets_the_cache(random_model: Loaded) -> None:
    cls = minicache_cpp.install(MiniCache(start=2), n_batch=64)
    with framework(str(random_model.path)) as llm:
        assert isinstance(llm, cls)
        assert isinstance(llm, Llama)
        assert llm.kv_report().pairs == [(2, 3), (4, 5)]
        assert llm.n_batch == 64
        llm.eval([5, 6, 7])


def test_a_caller_may_say_otherwise(random_model: Loaded) -> None:
    minicache_cpp.install(MiniCache(start=2), n_batch=64)
    with framework(str(random_model.path), minicache=None, n_batch=32) as llm:
        assert not llm.kv_report().active
        assert llm.n_batch == 32


def test_a_second_call_replaces_the_first_and_uninstall_ends_both(
    random_model: Loaded, llama_cpps_own_class: type[llama_cpp.Llama]
) -> None:
    minicache_cpp.install(MiniCache(start=2))
    minicache_cpp.install("q8_0")
    with framework(str(random_model.path)) as llm:
        assert llm.kv_report().type_k == "q8_0"
    minicache_cpp.uninstall()
    minicache_cpp.uninstall()
    plain = framework(str(random_model.path))
    assert type(plain) is llama_cpps_own_class
    plain.close()


def test_an_installed_llama_travels_by_pickle(random_model: Loaded) -> None:
    minicache_cpp.install(MiniCache(start=2))
    with framework(str(random_model.path)) as llm:
        state = llm.__getstate__()
    assert pickle.loads(pickle.dumps(state["minicache"])) == MiniCache(start=2)

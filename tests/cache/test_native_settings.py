"""The native library checks the ranges of settings by itself, and both languages have the same defaults and types."""

from __future__ import annotations

import re
from typing import Any

import pytest

from minicache_cpp import MiniCache
from minicache_cpp.cache.native_settings import native_params, single_precision
from minicache_cpp.modelfile.ggml_types import CACHE_TYPES, GGML_TYPES
from minicache_cpp.native import binding


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t": 1.5}, r"t = 1\.5.*0 to 1"),
        ({"t": -0.1}, r"t = -0\.1.*0 to 1"),
        ({"t": float("nan")}, r"t = .*nan.*0 to 1"),
        ({"retain": -0.1}, r"retain = -0\.1.*0 to 1"),
        ({"retain": 1.01}, r"retain = 1\.01.*0 to 1"),
        ({"retain": float("nan")}, r"retain = .*nan.*0 to 1"),
        ({"start": 1.0}, r"start = 1\.0.*at least 0 and below 1"),
        ({"start": float("nan")}, r"start = .*nan"),
        ({"start_layer": -2}, r"start layer -2"),
        ({"pool_type": 2}, r"f16, q8_0 or cache"),
        ({"pairs": [(1, 2), (2, 3)]}, r"2-3 overlaps"),
        ({"pairs": [(1, 1)]}, r"1-1"),
        ({"pairs": [(3, 1)]}, r"3-1.*shallower first"),
        ({"pairs": [(-1, 0)]}, r"-1-0"),
    ],
    ids=str,
)
def test_the_native_library_checks_for_itself(changes: dict[str, Any], reason: str) -> None:
    """Programs in other languages call it without the checks in Python."""
    ffi, lib = binding.ffi, binding.lib
    params = ffi.new("struct llama_minicache_params *", lib.llama_minicache_default_params())
    pairs = ffi.new("int32_t[]", [layer for pair in changes.get("pairs", []) for layer in pair])
    if "pairs" in changes:
        params.pairs, params.n_pairs = pairs, len(changes["pairs"])
    for name, value in changes.items():
        if name == "start":
            params.start_layer = -1
        if name != "pairs":
            setattr(params, name, value)
    try:
        assert not lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_PARAMS, params)
        assert re.search(reason, binding.last_error()), binding.last_error()
    finally:
        binding.use_env()


def test_both_languages_have_the_same_defaults() -> None:
    params = binding.lib.llama_minicache_default_params()
    ours = native_params(MiniCache())
    for name in ("start", "start_layer", "n_pairs", "t", "retain", "window", "pool_type", "strict", "mode"):
        assert getattr(ours, name) == getattr(params, name), name
    assert MiniCache().retain == single_precision(params.retain) == 0.05
    assert MiniCache(mode="average") == MiniCache.parse("average")


@pytest.mark.parametrize("name", sorted(GGML_TYPES))
def test_both_languages_have_the_same_cache_types(name: str) -> None:
    params = binding.ffi.new("struct llama_minicache_params *")
    types = [binding.ffi.new("enum ggml_type *") for _ in range(2)]
    known = binding.lib.llama_minicache_parse_params(f"slerp:type={name}".encode(), params, *types)
    assert known == (name in CACHE_TYPES), binding.last_error()

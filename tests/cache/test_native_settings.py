"""The native library checks settings by itself, whether they come as values or as text."""

from __future__ import annotations

import re
from typing import Any

import pytest

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


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("t=2", "t = 2"),
        ("t=", "not a number"),
        ("retain=half", "not a number"),
        ("start=0.5,colour=red", "colour"),
        ("start", "key=value"),
        ("pairs=1-2-3", "8-9;10-11"),
        ("pairs=1-2;2-3", "overlaps"),
        ("pool=q4_0", "pool type"),
        ("strict=maybe", "0 or 1"),
        ("", "key=value"),
    ],
)
def test_nonsense_as_text_is_refused(text: str, reason: str) -> None:
    params = binding.ffi.new("struct llama_minicache_params *")
    assert not binding.lib.llama_minicache_parse_params(text.encode(), params)
    assert reason in binding.last_error()


def test_settings_as_text() -> None:
    params = binding.ffi.new("struct llama_minicache_params *")
    text = "start=3,t=0.25,retain=0.1,pool=f16,pairs=1-2;4-5,strict=1"
    assert binding.lib.llama_minicache_parse_params(text.encode(), params)
    assert (params.start_layer, params.t, params.pool_type, params.strict) == (3, 0.25, 1, True)
    assert params.retain == pytest.approx(0.1)
    assert list(params.pairs[0 : 2 * params.n_pairs]) == [1, 2, 4, 5]
    assert binding.lib.llama_minicache_parse_params(b"start=0.25", params)
    assert (params.start_layer, params.start) == (-1, 0.25)
    for text in ("1", "on"):
        assert binding.lib.llama_minicache_parse_params(text.encode(), params)
        assert (params.start_layer, params.start, params.n_pairs) == (-1, 0.5, 0)
        assert params.t == pytest.approx(0.6)
        assert params.retain == pytest.approx(0.05)

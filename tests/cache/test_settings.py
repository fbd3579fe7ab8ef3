"""MiniCache and CacheSpec: which settings and texts are accepted, and which are refused."""

from __future__ import annotations

import re

import pytest

from minicache_cpp import CacheSpec, MiniCache, MiniCacheError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"t": 1.5}, "[0, 1]"),
        ({"t": float("nan")}, "[0, 1]"),
        ({"retain": -0.1}, "[0, 1]"),
        ({"retain": "0.1"}, "[0, 1]"),
        ({"start": 1.0}, "[0, 1)"),
        ({"start": float("nan")}, "[0, 1)"),
        ({"start": -1}, "from 0"),
        ({"start": True}, "[0, 1)"),
        ({"pairs": []}, "sequence"),
        ({"pairs": 3}, "sequence"),
        ({"pairs": [(3,)]}, "sequence"),
        ({"pairs": [(-1, 0)]}, "sequence"),
        ({"pairs": [(3, 3)]}, "deeper"),
        ({"pairs": [(4, 3)]}, "deeper"),
        ({"pairs": [(2, 3), (3, 4)]}, "overlaps"),
        ({"type_k": "q4"}, "q4_0, q4_1"),
        ({"type_v": 8}, "q8_0"),
        ({"pool_type": "q4_0"}, "f16, q8_0, cache"),
        ({"window": -1}, "0 to 65536"),
        ({"window": 65537}, "0 to 65536"),
        ({"window": 0.5}, "0 to 65536"),
        ({"window": True}, "0 to 65536"),
        ({"strict": "yes"}, "True"),
        ({"plan": "model.plan.gguf"}, "does not exist"),
        ({"plan": 3}, "no path"),
    ],
)
def test_nonsense_settings_are_refused_with_the_valid_range(settings: dict[str, object], words: str) -> None:
    with pytest.raises(MiniCacheError, match=re.escape(words)):
        MiniCache(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("slerp", MiniCache()),
        ("slerp:", MiniCache()),
        ("slerp:start=0.25,t=0.5,retain=0.1,type=q4_0", MiniCache(0.25, None, 0.5, 0.1, "q4_0", "q4_0")),
        ("slerp:start=8,type_k=q8_0", MiniCache(start=8, type_k="q8_0")),
        ("slerp:pairs=8-9;11-13,type=q5_1,type_v=q4_1,pool=cache,strict=1",
         MiniCache(pairs=[(8, 9), (11, 13)], type_k="q5_1", type_v="q4_1", pool_type="cache", strict=True)),
        ("slerp:start=0", MiniCache(start=0)),
        ("slerp:retain=0,window=64", MiniCache(retain=0, window=64)),
        ("average:start=0,window=3", MiniCache(start=0, retain=0, window=3, mode="average")),
    ],
)  # fmt: skip
def test_a_spec_says_what_the_settings_say(spec: str, settings: MiniCache) -> None:
    assert MiniCache.parse(spec) == settings
    assert MiniCache.parse(settings.spec()) == settings
    assert CacheSpec.parse(spec).minicache == settings


@pytest.mark.parametrize("name", ["f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl"])
def test_a_cache_type_is_the_spec_of_a_plain_cache(name: str) -> None:
    assert CacheSpec.parse(name) == CacheSpec(name, name, None)


@pytest.mark.parametrize(
    "spec",
    ["", "q3", "merge:t=1", "slerp:t", "slerp:t=", "slerp:t=x", "slerp:speed=1", "slerp:t=0.5,t=0.6", "auto",
     "plan.gguf", "slerp:pairs=8", "slerp:pairs=8-", "slerp:start=2.0", "slerp:strict=2", "slerp:type=q3",
     "slerp:window=0.5", "slerp:window=-1"],
)  # fmt: skip
def test_a_wrong_spec_is_refused(spec: str) -> None:
    with pytest.raises(MiniCacheError):
        CacheSpec.parse(spec)

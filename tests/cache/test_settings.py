"""MiniCache and CacheSpec: which settings and texts are accepted, and which are refused."""

from __future__ import annotations

import re

import pytest

from minicache_cpp import CacheSpec, MiniCache, MiniCacheError


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"t": 1.5}, "from 0 to 1"),
        ({"t": float("nan")}, "from 0 to 1"),
        ({"retain": -0.1}, "from 0 to 1"),
        ({"retain": "0.1"}, "not a number"),
        ({"start": 1.0}, "at least 0 and below 1"),
        ({"start": float("nan")}, "at least 0 and below 1"),
        ({"start": -1}, "from 0"),
        ({"start": True}, "[0, 1)"),
        ({"pairs": []}, "sequence"),
        ({"pairs": 3}, "sequence"),
        ({"pairs": [(3,)]}, "sequence"),
        ({"pairs": [(-1, 0)]}, "sequence"),
        ({"pairs": [(3, 3)]}, "the shallower first"),
        ({"pairs": [(4, 3)]}, "the shallower first"),
        ({"pairs": [(2, 3), (3, 4)]}, "overlaps"),
        ({"type_k": "q4"}, "q4_0, q4_1"),
        ({"type_v": 8}, "q8_0"),
        ({"pool_type": "q4_0"}, "f16, q8_0, cache"),
        ({"window": -1}, "from 0 to 65536"),
        ({"window": 65537}, "from 0 to 65536"),
        ({"window": 0.5}, "whole number"),
        ({"window": True}, "whole number"),
        ({"strict": "yes"}, "True"),
        ({"plan": "model.plan.gguf"}, "does not exist"),
        ({"plan": 3}, "not the path"),
    ],
)
def test_nonsense_settings_are_refused_with_the_valid_range(settings: dict[str, object], words: str) -> None:
    with pytest.raises(MiniCacheError, match=re.escape(words)):
        MiniCache(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl"])
def test_a_cache_type_is_the_spec_of_a_plain_cache(name: str) -> None:
    assert CacheSpec.parse(name) == CacheSpec(name, name, None)

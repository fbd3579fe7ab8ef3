"""One needle, or one among several, in a haystack: the keys and values of RULER (Hsieh et al. 2024, arXiv 2404.06654).

"The special number for violet-otter is 4821." is hidden in the text, and "The special number for violet-otter is"
asked for at its end. With several needles (RULER's multi-key task), the others have other keys and values and stand at
random depths, so that only the right key finds the value.
"""

from __future__ import annotations

import random

from .retrieval import Planted

COLORS = ("violet", "amber", "crimson", "silver", "golden", "scarlet", "green", "purple", "white", "blue")
ANIMALS = ("otter", "falcon", "badger", "heron", "lynx", "turtle", "raven", "salmon", "beaver", "spider")


class Needles:
    """n needles, of which the one at the stated depth is asked for."""

    def __init__(self, name: str, n: int) -> None:
        self.name, self.n = name, n

    def plant(self, rng: random.Random, depth: float) -> Planted:
        keys = rng.sample([f"{color}-{animal}" for color in COLORS for animal in ANIMALS], self.n)
        values = [str(number) for number in rng.sample(range(1000, 10000), self.n)]
        depths = [depth, *(rng.random() for _ in keys[1:])]
        facts = [(at, f"{_key(key)} {value}.") for at, key, value in zip(depths, keys, values, strict=True)]
        return Planted(tuple(sorted(facts)), _key(keys[0]), values[0])


def _key(key: str) -> str:
    return f"The special number for {key} is"

"""Bytes are distributed over layers and coefficients so that as little as possible is lost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from minicache_cpp.cache.code_format import UNIT, Layout
from minicache_cpp.calibrate.allocation import Candidate, Choice, Part, PlainPart, allocate
from minicache_cpp.calibrate.code_fit import CHOICES


def parts(rng: np.random.Generator, n: int) -> list[Part]:
    """Parts whose errors fall like those of quantizers, with noise that breaks the order of variances."""
    found = []
    for _ in range(n):
        variance = np.exp(-np.arange(8) * rng.uniform(0.1, 0.8)) * rng.uniform(0.9, 1.1, 8)
        errors = np.stack([variance * 4.0**-width for width in CHOICES])
        found.append(Part(errors * 10 ** rng.uniform(-4, 0), 2, 2))
    return found


def test_bits_are_handed_out_within_the_limit_and_best(rng: np.random.Generator) -> None:
    k, v = parts(rng, 4), parts(rng, 4)
    candidates = [Candidate((2 * i, 2 * i + 1), (), (k[i], v[i])) for i in range(4)]

    def n_bytes(choices: list[Choice]) -> float:
        return sum(one.token_bytes(choice) for one, choice in zip(candidates, choices, strict=True))

    for limit in (60.0, 150.0, 400.0, 900.0):
        found = allocate(candidates, lambda choices, limit=limit: n_bytes(choices) <= limit)
        assert found is not None
        choices, loss = found
        # at most the step of one unit of a part is left over
        assert limit - 8 * 2 * UNIT / 8 * 2 < n_bytes(choices) <= limit
        assert loss == pytest.approx(sum(c.loss(one) for c, one in zip(candidates, choices, strict=True)))
        for choice in choices:
            assert choice.k is not None
            assert choice.k.widths == sorted(choice.k.widths, reverse=True)
        # moving a bit from one part to another would not lose less
        sides = [(part, layout) for c, one in zip(candidates, choices, strict=True)
                 for part, layout in zip(c.code or (), (one.k, one.v), strict=True)]  # fmt: skip
        gains = [max(_slopes(part, layout, +1), default=0.0) for part, layout in sides]
        losses = [min(_slopes(part, layout, -1), default=np.inf) for part, layout in sides]
        # the noise that breaks the order of variances may cost something
        assert max(gains) <= min(losses) * 1.3


def _slopes(part: Part, layout: Layout | None, direction: int) -> list[float]:
    """The change of the loss per byte of each unit's next width up (`direction` 1) or down (-1)."""
    assert layout is not None
    widths = layout.widths + [0] * (8 - len(layout.widths))
    found = []
    for unit, width in enumerate(widths):
        index = CHOICES.index(width) + direction
        if 0 <= index < len(CHOICES):
            change = abs(part.losses[index, unit] - part.losses[CHOICES.index(width), unit])
            found.append(change / (abs(CHOICES[index] - width) * 2 * UNIT / 8))
    return found


def test_a_pair_that_codes_badly_stays_plain(rng: np.random.Generator) -> None:
    k, v = parts(rng, 2), parts(rng, 2)
    bad = Part(k[0].losses * 1e9, 2, 2)
    good_plain = PlainPart({"q8_0": 1e-7, "q4_0": 1e-2}, {"q8_0": 50.0, "q4_0": 30.0})
    bad_plain = PlainPart({"q8_0": 1.0}, {"q8_0": 50.0})
    candidates = [
        Candidate((0, 1), ((good_plain, good_plain),) * 2, (bad, v[0])),
        Candidate((2, 3), ((bad_plain, bad_plain),) * 2, (k[1], v[1])),
    ]
    found = allocate(candidates, lambda choices: sum(
        one.token_bytes(choice) for one, choice in zip(candidates, choices, strict=True)) <= 400)  # fmt: skip
    assert found is not None
    assert found[0][0] == Choice(types=(("q8_0", "q8_0"),) * 2)
    assert found[0][1].coded


def test_layers_get_the_types_of_least_loss(rng: np.random.Generator) -> None:
    """No combination of types that is as small loses less."""
    types = {"f16": 128.0, "q8_0": 68.0, "q5_1": 48.0, "q4_0": 36.0}
    errors = {"f16": 0.0, "q8_0": 1.0, "q5_1": 50.0, "q4_0": 300.0}
    parts = [
        PlainPart({name: error * sensitivity for name, error in errors.items()}, types)
        for sensitivity in 10 ** rng.uniform(-3, 0, 6)
    ]
    candidates = [Candidate((i,), ((parts[2 * i], parts[2 * i + 1]),)) for i in range(3)]

    def n_bytes(choices: list[Choice]) -> float:
        return sum(one.token_bytes(choice) for one, choice in zip(candidates, choices, strict=True))

    for limit in (6 * 36.0, 300.0, 420.0, 600.0, 768.0):
        found = allocate(candidates, lambda choices, limit=limit: n_bytes(choices) <= limit)
        assert found is not None
        used = n_bytes(found[0])
        assert used <= limit
        best = min(
            sum(part.losses[name] for part, name in zip(parts, names, strict=True))
            for names in itertools.product(types, repeat=6)
            if sum(types[name] for name in names) <= used
        )
        assert found[1] == pytest.approx(best)
    assert allocate(candidates, lambda choices: n_bytes(choices) <= 6 * 36.0 - 1) is None


def test_an_impossible_limit_gives_none(rng: np.random.Generator) -> None:
    k, v = parts(rng, 1), parts(rng, 1)
    assert allocate([Candidate((0, 1), (), (k[0], v[0]))], lambda choices: False) is None

"""Bytes are distributed over layers and coefficients so that as little as possible is lost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import UNIT, Layout
from minicache_cpp.calibrate.allocation import Candidate, Choice, Part, PlainPart, Price, Region, allocate
from minicache_cpp.calibrate.code_fit import CHOICES

N_HEAD, N_UNIT = 3, 8


def parts(rng: np.random.Generator, n: int, noise: float = 0.1) -> list[Part]:
    """Parts whose errors fall like those of quantizers, with noise that breaks the order of variances.

    Heads differ in how fast variances fall, and by up to ten times in how much their errors count.
    """
    found = []
    for _ in range(n):
        falling = rng.uniform(0.1, 0.8, (N_HEAD, 1)) * np.arange(N_UNIT)
        variance = np.exp(-falling) * rng.uniform(1 - noise, 1 + noise, (N_HEAD, N_UNIT))
        variance *= 10 ** (rng.uniform(-4, 0) + rng.uniform(-1, 0, (N_HEAD, 1)))
        found.append(Part(np.stack([variance * 4.0**-width for width in CHOICES], axis=1), 2))
    return found


def limited(candidates: list[Candidate], limit: float) -> tuple[list[Choice], float]:
    found = allocate(
        [Region([[one]]) for one in candidates],
        lambda chosen: sum(one.token_bytes(choice) for one, choice in chosen) <= limit,
    )
    assert found is not None
    assert [one for one, _ in found[0]] == candidates
    return [choice for _, choice in found[0]], found[1]


def n_bytes(candidates: list[Candidate], choices: list[Choice]) -> float:
    return sum(one.token_bytes(choice) for one, choice in zip(candidates, choices, strict=True))


def test_bits_are_handed_out_within_the_limit_and_best(rng: np.random.Generator) -> None:
    k, v = parts(rng, 4), parts(rng, 4)
    candidates = [Candidate((2 * i, 2 * i + 1), (), (k[i], v[i])) for i in range(4)]
    for limit in (90.0, 150.0, 400.0, 900.0, 1500.0):
        choices, loss = limited(candidates, limit)
        # at most the step of one unit, of a head or of two, is left over
        assert limit - 2 * 8 * UNIT / 8 < n_bytes(candidates, choices) <= limit
        assert loss == pytest.approx(sum(c.loss(one) for c, one in zip(candidates, choices, strict=True)))
        for choice in choices:
            assert choice.k is not None
            for layout in choice.k:
                assert layout.widths == sorted(layout.widths, reverse=True)
        # moving a bit from one head or part to another would not lose less
        heads = [(losses, layout) for c, one in zip(candidates, choices, strict=True)
                 for part, layouts in zip(c.code or (), (one.k, one.v), strict=True)
                 for losses, layout in zip(part.losses, layouts or (), strict=True)]  # fmt: skip
        gains = [max(_slopes(losses, layout, +1), default=0.0) for losses, layout in heads]
        losses = [min(_slopes(losses, layout, -1), default=np.inf) for losses, layout in heads]
        # the noise that breaks the order of variances may cost something
        assert max(gains) <= min(losses) * 1.3


def _slopes(losses: NDArray[np.float64], layout: Layout, direction: int) -> list[float]:
    """The change of a head's loss per byte of each unit's next width up (`direction` 1) or down (-1)."""
    widths = layout.widths + [0] * (N_UNIT - len(layout.widths))
    found = []
    for unit, width in enumerate(widths):
        index = CHOICES.index(width) + direction
        if 0 <= index < len(CHOICES):
            change = abs(losses[index, unit] - losses[CHOICES.index(width), unit])
            found.append(change / (abs(CHOICES[index] - width) * UNIT / 8))
    return found


def test_the_loss_of_layouts_is_that_of_their_units(rng: np.random.Generator) -> None:
    (part,) = parts(rng, 1)
    layouts = Layout((1, 0, 0, 2, 0, 0, 1)), Layout(), Layout((0, 3, 0, 0, 0, 5, 0))
    widths = [[8, 4, 4, 1, 0, 0, 0, 0], [0] * 8, [6, 6, 6, 2, 2, 2, 2, 2]]
    lost = [
        part.losses[head, CHOICES.index(width), unit]
        for head, own in enumerate(widths)
        for unit, width in enumerate(own)
    ]
    assert part.loss(layouts) == pytest.approx(sum(lost))
    # a magnitude of each of two layers for each head, and 2 bytes for each bit of a unit
    assert part.token_bytes(layouts) == 3 * 2 + 2 * (8 + 4 + 4 + 1 + 3 * 6 + 5 * 2)


def test_the_more_sensitive_head_gets_more_bits(rng: np.random.Generator) -> None:
    """Of heads that differ in nothing else; those that do not differ at all get the same."""
    (part,) = parts(rng, 1)
    same = part.losses[:1]
    factors = np.array([1.0, 30.0, 1.0])[:, None, None]
    candidates = [Candidate((0, 1), (), (Part(same * factors, 2), Part(same * factors[::-1], 2)))]
    for limit in (60.0, 120.0, 200.0):
        (choice,), _ = limited(candidates, limit)
        for layouts in (choice.k, choice.v):
            assert layouts is not None
            assert layouts[0] == layouts[2]
            assert layouts[1].bits > layouts[0].bits


def test_widths_of_their_own_lose_no_more_than_shared_ones(rng: np.random.Generator) -> None:
    for part in parts(rng, 10, noise=0.0):
        # one head of the sum of all losses, for whose every byte all heads pay
        summed = Part(part.losses.sum(axis=0, keepdims=True), 2)
        for price in np.logspace(-9, 0, 10):
            shared = summed.layouts(Price(N_HEAD * price)) * N_HEAD
            n_shared, lost = part.token_bytes(shared), part.loss(shared)
            own = part.layouts(Price(price))
            assert part.loss(own) + price * part.token_bytes(own) <= (lost + price * n_shared) * (1 + 1e-12)
            # in as many bytes, or a few less
            candidates = [Candidate((0, 1), (), (part, Part(np.zeros((N_HEAD, 8, 1)), 2)))]
            choices, loss = limited(candidates, n_shared + 2 * N_HEAD)
            assert n_bytes(candidates, choices) <= n_shared + 2 * N_HEAD
            assert loss <= lost * (1 + 1e-12)


def test_heads_that_differ_gain_from_widths_of_their_own(rng: np.random.Generator) -> None:
    gains = []
    for part in parts(rng, 10):
        shared = Part(part.losses.sum(axis=0, keepdims=True), 2).layouts(Price(1e-5)) * N_HEAD
        candidates = [Candidate((0, 1), (), (part, Part(np.zeros((N_HEAD, 8, 1)), 2)))]
        _, loss = limited(candidates, part.token_bytes(shared) + 2 * N_HEAD)
        gains.append(loss / part.loss(shared))
    assert np.mean(gains) < 0.8


def test_a_pair_that_codes_badly_stays_plain(rng: np.random.Generator) -> None:
    k, v = parts(rng, 2), parts(rng, 2)
    bad = Part(k[0].losses * 1e9, 2)
    good_plain = PlainPart({"q8_0": 1e-7, "q4_0": 1e-2}, {"q8_0": 50.0, "q4_0": 30.0}, 64)
    bad_plain = PlainPart({"q8_0": 1.0}, {"q8_0": 50.0}, 64)
    candidates = [
        Candidate((0, 1), ((good_plain, good_plain),) * 2, (bad, v[0])),
        Candidate((2, 3), ((bad_plain, bad_plain),) * 2, (k[1], v[1])),
    ]
    choices, _ = limited(candidates, 500)
    assert choices[0] == Choice(types=(("q8_0", "q8_0"),) * 2)
    assert choices[1].coded


def test_layers_get_the_types_of_least_loss(rng: np.random.Generator) -> None:
    """No combination of types that is as small loses less."""
    types = {"f16": 128.0, "q8_0": 68.0, "q5_1": 48.0, "q4_0": 36.0}
    errors = {"f16": 0.0, "q8_0": 1.0, "q5_1": 50.0, "q4_0": 300.0}
    parts = [
        PlainPart({name: error * sensitivity for name, error in errors.items()}, types, 64)
        for sensitivity in 10 ** rng.uniform(-3, 0, 6)
    ]
    candidates = [Candidate((i,), ((parts[2 * i], parts[2 * i + 1]),)) for i in range(3)]
    for limit in (6 * 36.0, 300.0, 420.0, 600.0, 768.0):
        found = limited(candidates, limit)
        used = n_bytes(candidates, found[0])
        assert used <= limit
        best = min(
            sum(part.losses[name] for part, name in zip(parts, names, strict=True))
            for names in itertools.product(types, repeat=6)
            if sum(types[name] for name in names) <= used
        )
        assert found[1] == pytest.approx(best)
    regions = [Region([[one]]) for one in candidates]
    least = 6 * 36.0
    assert allocate(regions, lambda chosen: sum(one.token_bytes(c) for one, c in chosen) <= least - 1) is None


def test_an_impossible_limit_gives_none(rng: np.random.Generator) -> None:
    k, v = parts(rng, 1), parts(rng, 1)
    assert allocate([Region([[Candidate((0, 1), (), (k[0], v[0]))]])], lambda chosen: False) is None


def split(rng: np.random.Generator) -> Region:
    """Two layers whose codes lose a fifth more by themselves than as a pair, in the same bytes."""
    k, v = parts(rng, 2, noise=0.0)
    # the layers of a pair share its units, so that each by itself has half as many
    alone = [Part(1.2 * part.losses[:, :, ::2], 1) for part in (k, v)]
    singles = [Candidate((layer,), (), (alone[0], alone[1])) for layer in (0, 1)]
    return Region([[Candidate((0, 1), (), (k, v))], singles])


def read(chosen: list[tuple[Candidate, Choice]]) -> float:
    return sum(one.units(choice) for one, choice in chosen)


def test_time_takes_units_that_lose_little(rng: np.random.Generator) -> None:
    """The dearer a unit that attention reads, the fewer there are in the same bytes, and the more is lost."""
    candidates = [Region([[Candidate((i,), (), (k, v))]]) for i, (k, v) in enumerate([parts(rng, 2)] * 2)]
    for limit in (150.0, 400.0):

        def small(chosen: list[tuple[Candidate, Choice]], limit: float = limit) -> bool:
            return sum(one.token_bytes(choice) for one, choice in chosen) <= limit

        found = [allocate(candidates, small, time) for time in (0.0, 1.0, 4.0, 16.0)]
        units = [read(one[0]) for one in found if one]
        lost = [one[1] for one in found if one]
        assert len(units) == 4
        assert units == sorted(units, reverse=True) and units[-1] < units[0]
        assert lost == sorted(lost)


def test_layers_get_codes_of_their_own_where_time_weighs_more(rng: np.random.Generator) -> None:
    region = split(rng)
    pair, singles = region.ways
    free, dear = region.choose(Price(1e-6)), region.choose(Price(1e-6, 1e-4))
    assert [one for one, _ in free] == list(pair)
    assert [one for one, _ in dear] == list(singles)
    # what is chosen costs no more than the other way at the same price
    for price in (Price(1e-6), Price(1e-6, 1e-5), Price(1e-6, 1e-4), Price(1e-6, 1.0)):
        cost = [sum(one.cost(one.choose(price), price) for one in way) for way in region.ways]
        assert sum(one.cost(choice, price) for one, choice in region.choose(price)) == min(cost)

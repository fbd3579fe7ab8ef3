"""Fitted codecs: what the oracle restores with a codec has the error that the fit expects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from minicache_cpp.cache.code_format import GroupFormat, Layout
from minicache_cpp.calibrate import code_fit
from minicache_cpp.calibrate.code_fit import CHOICES, PartCodec, PartFit, fit_part, make_codec, unit_vectors
from minicache_cpp.calibrate.rope import Rope
from oracle.code import Codec, Head
from oracle.code import Layout as OracleLayout
from oracle.code import Part as OraclePart

Array = npt.NDArray[np.floating]

N_HEAD, D = 2, 32
# of the two heads
LAYOUTS = [
    ((4, 0, 0, 0, 0, 0, 0), (4, 0, 0, 0, 0, 0, 0)),
    ((0, 0, 0, 4, 0, 0, 0), (0, 0, 0, 0, 0, 4, 0)),
    ((0, 1, 0, 1, 0, 1, 1), (1, 0, 1, 0, 1, 0, 0)),
    ((0, 0, 0, 0, 0, 0, 1), (1, 1, 0, 0, 0, 0, 0)),
    ((0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 1, 1, 0, 0)),
]

Fitted = tuple[PartFit, list[Array]]


def samples(rng: np.random.Generator, n_layer: int = 2, n: int = 3000) -> list[Array]:
    """Vectors of layers that are correlated, with falling variance; those of the first layer are longer."""
    size = n_layer * D
    mix = rng.standard_normal((size, size)) * np.exp(-np.arange(size) / (6 * n_layer))[:, None]
    x = (rng.standard_normal((n, N_HEAD, size)) @ mix).astype(np.float32)
    return [x[..., side * D : (side + 1) * D] * (1 if side else 5) for side in range(n_layer)]


@pytest.fixture(scope="module", params=[1, 2, 3, 4])
def fitted(request: pytest.FixtureRequest) -> Fitted:
    rng = np.random.default_rng(5)
    layers = samples(rng, request.param)
    return fit_part(layers, rng.uniform(0.2, 5, (N_HEAD, request.param * D))), layers


def oracle_part(codec: PartCodec) -> OraclePart:
    return OraclePart(
        tuple(
            Head(OracleLayout(layout.units), *(one.astype(np.float64) for one in arrays))
            for layout, *arrays in zip(
                codec.layouts, codec.mag, codec.weight, codec.gain, codec.decoder, strict=True
            )
        )
    )


@pytest.mark.parametrize("units", LAYOUTS)
def test_the_error_is_the_expected_one(fitted: Fitted, units: tuple[tuple[int, ...], ...]) -> None:
    fit, layers = fitted
    layouts = tuple(
        Layout.of(Layout(one).widths[: fit.n_unit]) for one in units
    )  # no longer than what they code
    part = oracle_part(make_codec(fit, layouts, layers))
    unit = [unit_vectors(x) for x in layers]
    errors = np.zeros(len(layers))
    for i, head in enumerate(part.heads):
        levels = head.levels_at(head.project([u[:, i] for u in unit]), 1.0)
        for side, u in enumerate(unit):
            wrong = head.decode(levels, side) / code_fit.UNIT_LENGTH - u[:, i]
            weight = fit.weight[i, side * D : (side + 1) * D]
            errors[side] += (weight * wrong**2).sum(axis=1).mean()
    # the fit uses a histogram in steps of 1/256 of a deviation, and decoders that are not rounded to f16
    assert errors.sum() == pytest.approx(fit.error(layouts), rel=0.005)
    by_layer = fit.layer_errors(layouts, len(layers))
    assert by_layer.sum() == pytest.approx(fit.error(layouts))
    # errors of coefficients may be correlated, which gives one layer more of the error and another less
    np.testing.assert_allclose(errors, by_layer, rtol=0.2)


def test_the_error_of_heads_is_the_sum_of_theirs(fitted: Fitted) -> None:
    fit, _ = fitted
    one, other = fit.uniform(5)[:1], fit.uniform(2)[:1]
    errors = [fit.error(layouts) for layouts in (one + one, one + other, other + one, other + other)]
    assert errors[1] + errors[2] == pytest.approx(errors[0] + errors[3])
    assert errors[0] < min(errors[1:3]) < max(errors[1:3]) < errors[3]
    assert fit.whole == pytest.approx(fit.errors[:, 0].sum())


def test_a_code_serves_the_layer_that_counts() -> None:
    """Of two layers in one code, the one whose errors weigh more is restored better, with the same bits."""
    layers = samples(np.random.default_rng(11))
    layouts = Layout((0, 0, 0, 1, 1, 0, 0)), Layout((0, 0, 1, 0, 1, 0, 0))
    shares = []
    for factor in (0.01, 1.0, 100.0):
        fit = fit_part(layers, np.repeat([[factor, 1.0]], D, axis=1) * np.ones((N_HEAD, 1)))
        shares.append(fit.layer_errors(layouts, 2) / fit.layer_errors(fit.uniform(0), 2))
    first, second = np.transpose(shares)
    assert first[0] > 1.3 * first[1] > 1.3**2 * first[2]
    assert second[2] > 1.3 * second[1] > 1.3**2 * second[0]


def test_tokens_count_by_their_weights() -> None:
    """A token with twice the weight counts as two tokens."""
    layers = samples(np.random.default_rng(12), n=500)
    weight = np.ones((N_HEAD, 2 * D))
    counts = np.where(np.arange(500) % 3 == 0, 2, 1)
    tokens = np.repeat((counts / counts.mean())[:, None], N_HEAD, axis=1)
    once, twice = (
        fit_part(layers, weight, tokens),
        fit_part([np.repeat(x, counts, axis=0) for x in layers], weight),
    )
    np.testing.assert_allclose(once.errors, twice.errors, rtol=1e-5)
    np.testing.assert_allclose(once.steps, twice.steps, rtol=1e-5)
    assert not np.allclose(once.errors, fit_part(layers, weight).errors, rtol=1e-2)


def test_magnitudes_are_in_the_middle_of_their_range(fitted: Fitted) -> None:
    fit, layers = fitted
    layouts = Layout((1, 0, 0, 1, 0, 0, 0)), Layout((0, 1, 0, 0, 1, 0, 0))
    part = oracle_part(make_codec(fit, layouts, layers))
    codes = part.encode(layers)
    for side, x in enumerate(layers):
        restored = part.restore(codes.rows, side)
        assert np.median(((restored - x) ** 2).sum(-1) / (x**2).sum(-1)) < 0.5
        # vectors twice or half as long would still be in the range
        for factor, ends in ((2.0, 255), (0.5, 1)):
            for code in part.encode([one * factor for one in layers]).heads:
                assert (code.mags[:, side] == ends).mean() < 0.01


def test_more_bits_and_better_directions_lose_less(fitted: Fitted) -> None:
    fit, _ = fitted
    assert (np.diff(fit.errors, axis=1) <= 1e-12).all()  # from 0 to 8 bits
    variances = fit.errors[:, 0]
    assert (np.diff(variances, axis=1) <= 1e-9 * variances.max()).all()


def test_steps_are_those_known_to_be_best_for_a_gaussian() -> None:
    t = np.random.default_rng(3).standard_normal((200000, 1))
    _, errors = code_fit._best_steps(code_fit._histograms(t, np.ones(len(t))))
    for width, expected in {1: 0.3634, 2: 0.1188, 3: 0.03744, 4: 0.01154}.items():  # Max 1960, uniform steps
        assert errors[CHOICES.index(width), 0] == pytest.approx(expected, rel=0.02)


def test_the_fit_is_the_same_every_time() -> None:
    layers = samples(np.random.default_rng(1), n=400)
    weight = np.ones((N_HEAD, 2 * D))
    layouts = tuple(map(Layout, LAYOUTS[2]))
    one, two = (make_codec(fit_part(layers, weight), layouts, layers) for _ in range(2))
    assert code_fit.codec_array(one, one).tobytes() == code_fit.codec_array(two, two).tobytes()


def test_a_layer_that_is_always_zero_and_a_code_of_nothing_are_finite() -> None:
    x, _ = samples(np.random.default_rng(2), n=100)
    zero = np.zeros_like(x)
    for layers in ([x, zero], [zero, zero], [zero], [x, zero, x]):
        fit = fit_part(layers, np.ones((N_HEAD, len(layers) * D)))
        assert np.isfinite(fit.layer_errors(fit.uniform(0), len(layers))).all()
        some = Layout((2, 0, 0, 0, 0, 0, 0))
        for layouts in ((some, some), (some, Layout()), (Layout(), Layout())):
            codec = make_codec(fit, layouts, layers)
            for array in (codec.mag, codec.weight, *codec.gain, *codec.decoder):
                assert np.isfinite(array.astype(np.float64)).all()
            code = oracle_part(codec).encode(layers)
            assert np.isfinite(oracle_part(codec).restore(code.rows, 0)).all()


def test_the_codec_is_laid_out_as_the_header_says(fitted: Fitted) -> None:
    fit, layers = fitted
    layouts_k = Layout((0, 1, 0, 1, 0, 0, 0)), Layout((0, 0, 0, 0, 1, 0, 0))
    layouts_v = Layout(), Layout((1, 0, 0, 0, 0, 0, 1))
    k, v = make_codec(fit, layouts_k, layers), make_codec(fit, layouts_v, layers)
    data = code_fit.codec_array(k, v)
    group = GroupFormat(tuple(range(len(layers))), N_HEAD, D, D, layouts_k, layouts_v)
    codec = Codec(oracle_part(k), oracle_part(v))
    assert data.nbytes == group.file_codec_bytes
    assert data.tobytes() == codec.to_bytes()
    assert group.codec_bytes(0) == codec.n_bytes
    assert group.token_bytes == codec.k.row_bytes + codec.v.row_bytes


def test_rope_turns_as_the_oracle_does(rng: np.random.Generator) -> None:
    x = rng.standard_normal((20, 2, 32)).astype(np.float32)
    positions = rng.integers(0, 30000, 20)
    freq = 10000.0 ** (-np.arange(12) / 12)  # turns 24 of 32 numbers
    for kind in ("none", "neighbours", "halves"):
        codec = Codec(None, None, kind, freq)  # type: ignore[arg-type]
        turned = Rope(kind, tuple(freq) if kind != "none" else ()).turn(x, positions)
        np.testing.assert_allclose(turned, codec.turn(x, positions), atol=1e-5)

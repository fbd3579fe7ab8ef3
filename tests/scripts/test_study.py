"""scripts/study: quantizers beside their bounds and beside trying everything, and variants on a tiny model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.calibrate.attention import read_from_codes
from minicache_cpp.calibrate.attention_weights import amplified
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.text.bundled import evaluation_files
from rivals.weights import read_weights
from study import quantizers
from study.__main__ import main
from study.matrices import full_weights, root_of
from study.variants import Variant
from study.watched import watched
from support.loaded import Loaded

VARIANTS = [
    "today",
    "ratio=2.2",
    "ratio=8",
    "widths=group",
    "widths=head,unit=8",
    "values=best",
    "values=points",
    "values=trellis",
    "code=kv",
    "code=heads,block=32",
    "mean=apart,mag=6,layers=3",
    "weights=full",
    "time=4",
    "omitted=2",
    "block=1",
    "rows=later",
    "rows=seen,large=0.25",
]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_each_quantizer_of_a_gaussian_is_better_than_the_one_before(width: int) -> None:
    t = np.random.default_rng(5).standard_normal((64, 128))
    errors = [((one.restored(t, width) - t) ** 2).mean() for one in quantizers.QUANTIZERS.values()]
    uniform, best, points, trellis = 10 * np.log10(errors)
    # two levels at equal distances from the middle are the best two
    assert best <= uniform + 0.01 and trellis < best - 0.5
    # points are there for 1 and 2 bits
    assert points < best - 0.2 if width <= 2 else points == best
    assert trellis > -6.02 * width  # no code of so many bits can lose less (Shannon 1959)


def test_a_point_is_the_nearest_of_all() -> None:
    t = np.random.default_rng(3).standard_normal((4, 15))
    points = quantizers.best_points(1)
    assert points.shape == (32, 5)
    found = quantizers.QUANTIZERS["points"].restored(t, 1)
    for row, restored in zip(t.reshape(-1, 5), found.reshape(-1, 5), strict=True):
        assert np.isclose(((restored - row) ** 2).sum(), ((points - row) ** 2).sum(axis=1).min())
    # what does not fill a point is filled up, and dropped again
    assert np.array_equal(quantizers.QUANTIZERS["points"].restored(t[:, :12], 1)[:, :10], found[:, :10])


def test_viterbi_finds_what_trying_everything_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "WINDOW", 3)
    rng = np.random.default_rng(2)
    for width in (1, 2, 3):
        levels, t = rng.standard_normal(8), rng.standard_normal((5, 4))
        found = ((levels[quantizers.viterbi_states(t, levels, width)] - t) ** 2).sum(axis=1)
        least = np.full(5, np.inf)
        for new in itertools.product(range(2**width), repeat=4):
            window, total = 0, np.zeros(5)
            for i, bits in enumerate(new):
                window = (window << width | bits) & 7
                total += (levels[window] - t[:, i]) ** 2
            least = np.minimum(least, total)
        assert np.allclose(found, least)


def test_full_matrices_have_the_weights_of_numbers_on_their_diagonals(random_model: Loaded) -> None:
    weights = read_weights(read_gguf(random_model.path))
    (tokens,) = np.random.default_rng(4).integers(0, 256, (1, 96))
    # one block for the whole text, so that queries are as they are after RoPE
    found = full_weights(weights, [tokens.tolist()], block=32, rope_block=0, window=8)
    cache = watched(weights, tokens.tolist(), 32)
    at = np.arange(len(tokens))
    counted = read_from_codes(at[:, None] - at, 8)
    for layer in cache.asked:
        q, k, v = cache.seen_of(layer)
        (n_head, d), output = q.shape[1:], weights.layer(layer)["attn_output.weight"].astype(np.float64)
        gain = (output**2).sum(axis=0).reshape(n_head, d).mean(axis=1)
        read = amplified(q, k, v, gain, at, counted)
        matrices = found["k", layer], found["v", layer]
        assert np.allclose(np.diagonal(matrices[0], axis1=1, axis2=2), read.k, rtol=1e-3)
        assert np.allclose(np.trace(matrices[1], axis1=1, axis2=2), d * read.v, rtol=1e-3)
        for matrix in (*matrices[0], *matrices[1]):
            root = root_of(matrix, 2.0)
            assert np.trace(root @ root) == pytest.approx(2.0)
            assert np.allclose(root @ root, matrix * 2.0 / np.trace(matrix), atol=5e-3)


def test_variants_on_a_tiny_model(
    random_model: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = [word for path in evaluation_files()[:2] for word in ("--text", str(path))]
    arguments = [str(random_model.path), *text, "--ctx", "256", "--tokens", "2048", "--work", str(tmp_path)]
    assert main([*arguments, "--json", "--config", *VARIANTS]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    for name, row in rows.items():
        ratio = Variant.parse(name).ratio
        assert ratio <= row["ratio"] < 1.1 * ratio
        assert np.isfinite(row["kl_mean"])
    kl = {name: row["kl_mean"] for name, row in rows.items()}
    assert kl["ratio=2.2"] < 0.5 * kl["today"] < 0.5 * kl["ratio=8"]
    expected = {name: row["expected"] for name, row in rows.items()}
    for better in ("widths=head,unit=8", "values=best", "values=trellis", "code=kv", "rows=later"):
        assert expected[better] < expected["today"] < expected["widths=group"]
    # what the window made of a token says less of it than what it will be read for
    assert expected["rows=later"] < expected["rows=seen,large=0.25"]
    reads = {name: row["multiply_adds"] for name, row in rows.items()}
    assert reads["time=4"] < reads["today"] < reads["omitted=2"]
    assert reads["code=kv"] > reads["today"]
    assert kl["weights=full"] != kl["today"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour=red", "'colour' is none of ratio"),
        ("ratio=x", "ratio=x is not a number"),
        ("values=worst", "values is one of uniform, best, points, trellis"),
        ("unit=3", "unit is one of 1, 2, 4"),
        ("layers=9", "a number is out of range"),
        ("large=1", "a number is out of range"),
        ("time=-1", "a number is out of range"),
        ("omitted=0", "a number is out of range"),
        ("rows=odd", "rows is one of even, later, seen"),
    ],
)
def test_bad_variants_are_refused(text: str, message: str) -> None:
    with pytest.raises(MiniCacheError, match=message):
        Variant.parse(text)

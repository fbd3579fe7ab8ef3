"""Probes: attention is computed as the model computes it, and what they find agrees with whole caches."""

from __future__ import annotations

import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp.calibrate import probes
from minicache_cpp.calibrate.attention import attention
from minicache_cpp.calibrate.code_fit import fit_part, restored
from minicache_cpp.calibrate.material import Chunk, Material
from minicache_cpp.calibrate.observed import observing
from minicache_cpp.calibrate.probes import (
    WAYS,
    Probe,
    Way,
    probed_texts,
    probes_of,
    tokens_read,
)
from minicache_cpp.host.progress import Progress
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native import binding
from minicache_cpp.native.batch import BatchToken
from minicache_cpp.native.model_shape import model_shape
from minicache_cpp.reading.model import NativeModel
from support import tiny_models
from support.calibrations import made

FAST, THOROUGH = WAYS[False], WAYS[True]


@pytest.mark.parametrize("name", ["plain", "odd"])
def test_attention_is_what_the_model_computes(models: dict[str, Path], name: str) -> None:
    tokens = tiny_models.prompt(50)
    with NativeModel(models[name]) as model, observing(model, 64, 1) as observed:
        observed.read((BatchToken(token, 70 + i) for i, token in enumerate(tokens)), "qkvo")
        seen = {key: one.copy() for key, one in observed.seen.items()}
    for number, layer in enumerate(model_shape(read_gguf(models[name])).layers):
        q, k = (seen[kind, number].reshape(50, -1, layer.head_size_k) for kind in "qk")
        v, result = (seen[kind, number].reshape(50, -1, layer.head_size_v) for kind in "vo")
        np.testing.assert_allclose(attention(q, k, v, k, v, 8), result, atol=2e-3 * np.abs(result).max())


def test_restored_tokens_are_read_beyond_the_window_only() -> None:
    rng = np.random.default_rng(5)
    q, k, v, other_k, other_v = (rng.standard_normal((30, n, 8)).astype(np.float32) for n in (4, 2, 2, 2, 2))
    exact = attention(q, k, v, k, v, 10)
    changed = attention(q, k, v, other_k, other_v, 10)
    np.testing.assert_array_equal(changed[:10], exact[:10])
    assert (np.abs(changed[10:] - exact[10:]).max(axis=(1, 2)) > 1e-3).all()
    # of a window of 32, the first two tokens and the latest 30
    long = [np.concatenate([one, one]) for one in (q, k, v, other_k, other_v)]
    q, k, v, other_k, other_v = long
    exact, changed = attention(q, k, v, k, v, 32), attention(q, k, v, other_k, other_v, 32)
    np.testing.assert_array_equal(changed[:32], exact[:32])
    assert (np.abs(changed[32:] - exact[32:]).max(axis=(1, 2)) > 1e-3).all()
    other_k[2:], other_v[2:] = k[2:], v[2:]
    np.testing.assert_array_equal(attention(q, k, v, other_k, other_v, 32), exact)


def test_the_last_tokens_are_the_end_of_the_whole() -> None:
    rng = np.random.default_rng(5)
    q, k, v, other_k, other_v = (rng.standard_normal((30, n, 8)).astype(np.float32) for n in (4, 2, 2, 2, 2))
    changed = attention(q, k, v, other_k, other_v, 10)
    np.testing.assert_allclose(attention(q[-3:], k, v, other_k, other_v, 10), changed[-3:], atol=1e-6)


def test_a_change_moves_one_sequence_and_nothing_else(models: dict[str, Path]) -> None:
    tokens = tiny_models.prompt(12)
    with NativeModel(models["plain"]) as model, observing(model, 64, 1, n_seq=2) as observed:

        def read() -> tuple[np.ndarray, np.ndarray]:
            observed.read(
                BatchToken(token, i, sequence, wanted=True)
                for sequence in range(2)
                for i, token in enumerate(tokens)
            )
            first, second = observed.logits(24, model.n_vocab).copy().reshape(2, 12, -1)
            return first, second

        exact = read()
        moved: list[int] = []

        def change(layer: int, result: np.ndarray) -> None:
            moved.append(layer)
            result[12:] += 0.5 * (layer == 2)

        binding.clear(observed.ctx)
        observed.change = change
        changed = read()
    assert moved == [0, 1, 2, 3]
    np.testing.assert_array_equal(changed[0], exact[0])
    assert np.abs(changed[1] - exact[1]).max() > 1e-3


def test_an_error_in_the_callback_is_raised_and_the_context_stays_usable(models: dict[str, Path]) -> None:
    def change(layer: int, result: np.ndarray) -> None:
        raise KeyError(layer)

    with NativeModel(models["plain"]) as model, observing(model, 16, 1) as observed:
        observed.change = change
        with pytest.raises(KeyError, match="0"):
            observed.read([BatchToken(1, 0, wanted=True)])
        observed.change = None
        observed.read([BatchToken(1, 1, wanted=True)], "k")
        assert len(observed.seen) == 4


@pytest.mark.parametrize("wanted", [(), "k"])
def test_ctrl_c_in_the_callback_ends_the_step(models: dict[str, Path], wanted: str) -> None:
    def change(layer: int, result: np.ndarray) -> None:
        moved.append(layer)
        signal.raise_signal(signal.SIGINT)

    moved: list[int] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with NativeModel(models["plain"]) as model, observing(model, 16, 1) as observed:
            observed.change = change
            with pytest.raises(KeyboardInterrupt):
                observed.read([BatchToken(1, 0, wanted=True)], wanted)
            assert moved == [0]
            observed.change = None
            observed.read([BatchToken(1, 1, wanted=True)], "k")
            assert len(observed.seen) == 4
    finally:
        signal.signal(signal.SIGINT, before)


def test_probes_cover_each_layer_once_for_each_kind() -> None:
    assert probes_of([0, 3]) == [Probe("k", 0), Probe("k", 3), Probe("v", 0), Probe("v", 3)]


def chunks_of(n: int, length: int) -> list[Chunk]:
    return [Chunk([number] * length, 1000 * number, 64) for number in range(n)]


def test_a_thorough_way_probes_all_texts_but_those_of_the_check() -> None:
    material = Material(chunks_of(8, 512), chunks_of(7, 512), chunks_of(2, 512), "")
    assert len(probed_texts(material, THOROUGH)) == 15
    few = probed_texts(material, replace(FAST, texts=6))
    assert [one.chunk.tokens[0] for one in few] == [0, 1, 2, 4, 5, 6]
    assert {len(one.chunk.tokens) for one in few} == {440}
    assert tokens_read(few, 30, FAST) == 6 * (440 + 61 * 8)
    # what is long enough gives two
    long = probed_texts(Material([], chunks_of(2, 1024), [], ""), THOROUGH)
    assert [(one.chunk.tokens[0], one.chunk.position) for one in long] == [
        (0, 0),
        (0, 512),
        (1, 1000),
        (1, 1512),
    ]
    assert len(probed_texts(Material([], chunks_of(1, 100), [], ""), FAST)) == 1
    # of many, some of each part
    # where texts are given, as many of them as of the package's own
    own, given = chunks_of(6, 512), [Chunk(one.tokens, 9000) for one in chunks_of(6, 512)]
    both = Material([], given, [], "").beside(Material([], own, [], ""))
    probed = [one.chunk.position for one in probed_texts(both, FAST)]
    assert [sum(at == 9000 for at in probed), len(probed)] == [6, 12]
    many = probed_texts(Material(chunks_of(160, 512), chunks_of(16, 512), [], ""), THOROUGH)
    assert len(many) == 24
    assert {len(one.without) for one in many} == {0, 40}
    assert len({one.without for one in many}) == 5


@pytest.mark.parametrize("n_chunk", [2, 3, 10])
def test_no_text_is_probed_with_codes_that_know_it(n_chunk: int) -> None:
    found = probed_texts(Material(chunks_of(n_chunk, 512), [], [], ""), THOROUGH)
    assert sorted(one.chunk.tokens[0] for one in found) == list(range(n_chunk))
    for one in found:
        assert one.chunk.tokens[0] in one.without
        # some are left to fit to, and at least as many as there are in another part
        assert len(one.without) <= -(-n_chunk // 2)
    # codes are fitted once for each part
    parts = [one.without for one in found]
    assert sum(a != b for a, b in pairwise(parts)) == len(set(parts)) - 1


def test_probes_agree_with_whole_caches(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order of magnitude: both are noisy."""
    monkeypatch.setitem(WAYS, False, Way(fitted=False, texts=6, tokens=8, kept=1.0))
    probed = made(models["plain"], text, tmp_path / "plan.gguf", tokens=6656)
    # what is not computed as the model does is measured with whole caches
    monkeypatch.setattr(probes, "MOST_DIFFERENCE", -1.0)
    measured = made(models["plain"], text, tmp_path / "plan.gguf", tokens=6656, thorough=True)
    for name in ("sensitivity_k", "sensitivity_v"):
        ours, theirs = (
            np.array([one for row in found["choices"] for one in row[name]]) for found in (probed, measured)
        )
        assert (np.abs(np.log(ours / theirs)) < np.log(4)).all(), (name, ours, theirs)


def test_restoring_keeps_lengths_and_is_close() -> None:
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((400, 2, 32)) * np.linspace(0.2, 2, 32)).astype(np.float32)
    weight = rng.uniform(0.5, 2, (2, 32))
    fit = fit_part([x], weight)
    for width, most in ((2, 0.2), (8, 1e-3)):
        again = restored(fit, width, x)
        error = ((again - x) ** 2).sum() / (x**2).sum()
        assert 0 < error < most
    root = np.sqrt(weight).astype(np.float32)
    np.testing.assert_allclose(
        np.linalg.norm(restored(fit, 2, x) * root, axis=2), np.linalg.norm(x * root, axis=2), rtol=1e-4
    )


def test_a_model_whose_attention_differs_is_reported_and_calibrated(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ALiBi adds to the scores, which probes do not know."""
    notes: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, words: notes.append(words))
    found = made(models["alibi"], text, tmp_path / "plan.gguf")
    assert [words for words in notes if "attention differs" in words]
    assert {one for row in found["choices"] for one in row["sensitivity_v"]} == {0.008}
    assert found["rows"][0]["ratio"] >= 5.0

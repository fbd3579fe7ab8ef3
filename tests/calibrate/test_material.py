"""How a text is cut into the chunks that calibration uses to fit, to measure and to check."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.calibrate import calibration
from minicache_cpp.calibrate.calibration import material_of
from minicache_cpp.calibrate.material import FAST, MORE_TEXTS, Chunk, Cut, Texts, make_material
from minicache_cpp.calibrate.options import DEFAULT_WINDOW, Options
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from minicache_cpp.text.vocabulary import Vocabulary
from support.calibrations import made


def test_chunks_of_a_short_text_are_disjoint_and_all_over_it(models: dict[str, Path], text: Path) -> None:
    with Vocabulary(models["plain"]) as vocabulary:
        material = make_material(vocabulary, [text], 4096, 4096, "")
        tokens = vocabulary.tokenize(text.read_text())
    assert len(material.fit) >= len(material.measure) >= 1
    assert len(material.check) == 2 * len(material.measure)
    data = bytes(token % 256 for token in tokens)
    taken: set[int] = set()
    for chunk in [*material.fit, *material.measure, *material.check[::2]]:
        own: set[int] = set()  # offsets in the text; a chunk consists of several stretches of it
        part = bytes(token % 256 for token in chunk.tokens)
        for start in range(len(part) - 90):  # each stretch of 90 contains a number that occurs once
            if (at := data.find(part[start : start + 90])) >= 0:
                own |= set(range(at, at + 90))
        assert len(own) > len(chunk.tokens) * 0.9
        assert not own & taken
        taken |= own
    assert min(taken) < len(data) / 8 and max(taken) > len(data) * 6 / 8
    positions = sorted(
        chunk.position for kind in (material.fit, material.measure, material.check) for chunk in kind
    )
    assert positions[0] == 0 and positions[-1] > 2500


def test_a_text_shorter_than_asked_for_makes_fewer_chunks_and_no_shorter_ones(
    models: dict[str, Path], text: Path
) -> None:
    cut = Cut(128, 128, 128, False, 1, ("fit", "measure", "fit", "check"))
    with Vocabulary(models["plain"]) as vocabulary:
        material = make_material(vocabulary, [text], 32768, 4096, cut=cut)
        n_tokens = len(vocabulary.tokenize(text.read_text()))
    lengths = [
        len(chunk.tokens) for kind in (material.fit, material.measure, material.check) for chunk in kind
    ]
    assert len(lengths) == n_tokens // 128 < 32768 // 128
    assert set(lengths) == {128}


@pytest.mark.parametrize("size", ["short", "long"])
def test_chunks_to_fit_to_are_made_of_several_places(
    models: dict[str, Path], tmp_path: Path, size: str
) -> None:
    """Numbered words: those of a piece follow each other, and no two pieces overlap."""
    n_word = 4000 if size == "short" else 40_000
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number:05} " for number in range(n_word)))
    cut = Cut(300, 300, 300, False, 3, ("fit", "measure", "fit", "check"))
    with Vocabulary(models["plain"]) as vocabulary:
        material = make_material(vocabulary, [path], 1200, 4096, cut=cut)
        begin = vocabulary.begun([])

        def words(chunk: Chunk) -> list[int]:
            text = vocabulary.detokenize(chunk.tokens[len(begin) :])
            return [int(word) for word in text.split() if len(word) == 5]

        found = {"fit": material.fit, "other": material.measure + material.check}
        numbers = {kind: [words(chunk) for chunk in chunks] for kind, chunks in found.items()}
    for kind, n_place in (("fit", 3), ("other", 1)):
        for one in numbers[kind]:
            jumps = [second - first for first, second in pairwise(one) if second != first + 1]
            assert len(jumps) == n_place - 1
            assert all(jump > n_word / 4 / 3 / 2 for jump in jumps)
    every = [number for kind in numbers.values() for one in kind for number in one]
    assert len(every) == len(set(every))
    assert max(every) > 0.75 * n_word


def test_the_package_s_text_is_used_beside_a_given_one(models: dict[str, Path], text: Path) -> None:
    file = read_gguf(models["plain"])
    shape = model_shape(file)
    both, own = (
        material_of(file, shape, Options(texts=texts, ratio=5.0, tokens=2048)) for texts in ((text,), ())
    )
    with Vocabulary(models["plain"]) as vocabulary:
        given = make_material(vocabulary, [text], 2048, shape.n_ctx_train, "", DEFAULT_WINDOW, FAST)
    assert both.fit == [*given.fit, *own.fit]
    assert both.measure == [*given.measure, *own.measure]
    assert both.check == given.check
    assert both.description == "text.txt and the package's own text"


def test_larger_models_are_probed_on_more_texts(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = read_gguf(models["plain"])
    shape = model_shape(file)

    def counts(options: Options) -> list[int]:
        found = material_of(file, shape, options)
        return [len(found.fit), len(found.measure), len(found.check)]

    small, wanted = counts(Options(ratio=5.0)), counts(Options(max_kl=0.01))
    monkeypatch.setattr(calibration, "LARGE", 0)
    assert counts(Options(ratio=5.0)) == [small[0], small[1] + MORE_TEXTS, small[2]]
    # all of these are measured on, again and again
    assert counts(Options(max_kl=0.01)) == wanted


def test_both_halves_of_a_check_text_are_scored(models: dict[str, Path], text: Path) -> None:
    with Vocabulary(models["plain"]) as vocabulary:
        material = make_material(vocabulary, [text], 8192, 4096, "")
        begin = len(vocabulary.begun([]))
    for chunk, again in zip(material.check[::2], material.check[1::2], strict=True):
        half = len(chunk.tokens) // 2
        first, second = chunk.tokens[begin:half], again.tokens[half + begin :]
        assert first[: len(second)] == second[: len(first)]
        assert len(first) > 0.9 * half
        assert (chunk.first, again.first) == (half, half)


@pytest.mark.parametrize(
    ("window", "n_tokens"), [(0, 1024), (20, 1024), (64, 1024), (64, 384), (64, 8192), (600, 4096)]
)
def test_scored_tokens_lie_beyond_the_window(
    models: dict[str, Path], text: Path, window: int, n_tokens: int
) -> None:
    with Vocabulary(models["plain"]) as vocabulary:
        material = make_material(vocabulary, [text], n_tokens, 4096, "", window)
    assert min(len(material.fit), len(material.measure), len(material.check)) >= 1
    for chunk in [*material.measure, *material.check]:
        coded = len(chunk.tokens) - window  # as many coded tokens as the last token sees
        assert chunk.window == window
        assert coded >= 16
        assert len(chunk.tokens) <= max(1024, 256 + window)
        assert chunk.first == window + coded // 2
    if n_tokens > 4000 and window < 600:  # a long text gives long contexts
        assert min(len(chunk.tokens) for chunk in material.measure) >= 700
    whole = sum(len(chunk.tokens) for chunk in [*material.fit, *material.measure, *material.check[::2]])
    assert whole <= n_tokens + 16  # tokens in all


def test_a_window_needs_longer_chunks(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    with pytest.raises(MiniCacheError, match="--tokens 1024: with --window 300 it must be 1328 or more"):
        made(models["plain"], text, tmp_path / "plan.gguf", window=300)
    short = tmp_path / "short.txt"
    short.write_text(text.read_text()[:200])
    with pytest.raises(MiniCacheError, match="chunks of 80"):
        made(models["plain"], short, tmp_path / "plan.gguf", window=64)


def test_a_context_is_no_longer_than_the_model_was_trained_for(models: dict[str, Path], text: Path) -> None:
    with Vocabulary(models["plain"]) as vocabulary:
        for n_ctx, most in ((700, 700), (4096, 1024)):
            material = make_material(vocabulary, [text], 8192, n_ctx, "", 64)
            for chunk in [*material.measure, *material.check]:
                assert len(chunk.tokens) <= most
                assert chunk.position + len(chunk.tokens) <= n_ctx


def test_a_text_of_gigabytes_is_not_read_whole(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    size = 3 * 2**30
    with path.open("wb") as file:  # sparse, so that it takes no room on disk
        for i in range(64):
            file.seek(i * size // 64)
            file.write(f"é{i}".encode() * 1000)
        file.truncate(size)
    with Vocabulary(models["plain"]) as vocabulary:
        tracemalloc.start()
        material = make_material(vocabulary, [path, path], 2048, 4096, "")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert sum(len(chunk.tokens) for chunk in material.fit) >= 512
    assert peak < 32 * 2**20


def test_characters_are_not_cut(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("äöü" * 10)
    (tmp_path / "b").write_text("€€€")
    texts = Texts([tmp_path / "a", tmp_path / "b"])
    assert texts.size == 69
    for start in range(60):
        assert set(texts.read(start, 9)) <= set("äöü€\n")
    assert texts.read(0, 69) == "äöü" * 10 + "\n\n€€€"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"abc\xff" * 4000, "not UTF-8"), (b"too short", "too few tokens"), (None, "does not exist")],
)
def test_a_useless_text_is_refused(
    models: dict[str, Path], tmp_path: Path, data: bytes | None, words: str
) -> None:
    path = tmp_path / "text.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(MiniCacheError, match=words):
        made(models["plain"], path, tmp_path / "plan.gguf")

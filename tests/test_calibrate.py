"""`minicache calibrate`: what it sees of a model, what it chooses, and that it does so again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models

from minicache_cpp import CacheSpec, Llama, MiniCache, MiniCacheError, MiniCacheWarning
from minicache_cpp.cache.plan_file import read_plan, write_plan
from minicache_cpp.cache.plan_store import find_plan, plan_path
from minicache_cpp.calibrate import capture as capture_module
from minicache_cpp.calibrate.attention_weights import attention_weights
from minicache_cpp.calibrate.calibration import Options, calibrate
from minicache_cpp.calibrate.capture import capture
from minicache_cpp.calibrate.group_fit import cut_into_groups
from minicache_cpp.calibrate.layer_weights import output_gain, output_gains
from minicache_cpp.calibrate.material import Chunk, Texts, make_material
from minicache_cpp.calibrate.meter import Meter
from minicache_cpp.calibrate.parallel_context import ParallelContext
from minicache_cpp.calibrate.rope import Rope
from minicache_cpp.calibrate.samples import Samples
from minicache_cpp.calibrate.table import table
from minicache_cpp.host.progress import Progress
from minicache_cpp.host.work_folder import work_folder
from minicache_cpp.modelfile.ggml_types import GGML_TYPES
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.modelfile.shape import Layer, ModelShape, model_shape
from minicache_cpp.reading.model import NativeModel
from minicache_cpp.text import bundled
from minicache_cpp.text.vocabulary import Vocabulary

QUICK = Options(ratio=5.0, tokens=1024, threads=1)
SENTENCES = "The quick brown fox, no. {}, jumps over the lazy dog; {} dogs bark. "


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": tiny_models.random_model(n_layer=4).write(folder / "plain.gguf"),
        "odd": tiny_models.random_model(n_layer=3, arch="qwen2").write(folder / "odd.gguf"),
        "alibi": tiny_models.random_model(n_layer=2, arch="refact").write(folder / "alibi.gguf"),
        "window": tiny_models.sliding_window_model(folder / "window.gguf"),
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(SENTENCES.format(i, i * i) for i in range(200)))
    return path


def made(model: Path, text: Path, output: Path, **more: Any) -> dict[str, Any]:
    values = {"ratio": 5.0, "tokens": 1024, "threads": 1, "texts": (text,), **more}
    return calibrate(model, Options(**values), output)


@pytest.fixture(scope="module")
def found(models: dict[str, Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(models["plain"], text, tmp_path_factory.mktemp("plans") / "plan.gguf")


#
# what is seen
#


@pytest.mark.parametrize("name", ["plain", "odd", "alibi"])
def test_what_is_captured_is_what_the_model_computes(
    models: dict[str, Path], tmp_path: Path, name: str
) -> None:
    chunks = [Chunk(tiny_models.prompt(40), 0), Chunk(tiny_models.prompt(30, seed=1), 3000)]
    shape = model_shape(read_gguf(models[name]))
    samples = Samples(tmp_path, shape, chunks, window=8)
    with NativeModel(models[name]) as model:
        capture(model, samples, 1, lambda n: None)
    arch = {"plain": "llama", "odd": "qwen2", "alibi": "refact"}[name]
    tiny = tiny_models.random_model(n_layer=len(shape.layers), arch=arch)
    tokens = [token for chunk in chunks for token in chunk.tokens]
    x = tiny.weights["token_embd.weight"][tokens].astype(np.float64)
    normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + tiny.shape.eps)
    normed *= tiny.weights["blk.0.attn_norm.weight"]

    def project(kind: str, n_head: int) -> Any:
        rows = normed @ tiny.weights[f"blk.0.attn_{kind}.weight"].T
        if f"blk.0.attn_{kind}.bias" in tiny.weights:
            rows = rows + tiny.weights[f"blk.0.attn_{kind}.bias"]
        return rows.reshape(len(tokens), n_head, -1).astype(np.float32)

    rope = samples.ropes[0]
    assert rope is not None
    assert rope.kind == tiny.shape.rope
    k, v = samples.layer(0)
    np.testing.assert_allclose(v, project("v", 2), atol=5e-3)
    np.testing.assert_allclose(k, rope.turn(project("k", 2), samples.positions), atol=5e-3)
    if rope.kind != "none":
        freq = 10000.0 ** (-np.arange(16) / 16)
        np.testing.assert_allclose(rope.freq, freq, rtol=1e-6)
    # how errors count, chunk by chunk
    q = rope.turn(project("q", 4), samples.positions)
    turned_k, exact_v = rope.turn(project("k", 2), samples.positions), project("v", 2)
    parts = [slice(0, 40), slice(40, 70)]
    reads = [attention_weights(q[one], turned_k[one], exact_v[one], np.ones(4), 8) for one in parts]
    read = samples.read(0)
    np.testing.assert_allclose(
        read.k, (4 * reads[0].k + 3 * reads[1].k) / 7, rtol=1e-2, atol=1e-3 * read.k.max()
    )
    np.testing.assert_allclose(read.v, (4 * reads[0].v + 3 * reads[1].v) / 7, rtol=1e-2)
    tokens_k, tokens_v = (
        np.concatenate(ones) for ones in zip(*[(x.tokens_k, x.tokens_v) for x in reads], strict=True)
    )
    np.testing.assert_allclose(samples.tokens("k", 0), tokens_k, rtol=2e-2)
    np.testing.assert_allclose(samples.tokens("v", 0), tokens_v, rtol=2e-2)


def test_the_gain_of_values_is_that_of_the_output_matrix(models: dict[str, Path]) -> None:
    file = read_gguf(models["plain"])
    matrix = tiny_models.random_model(n_layer=4).weights["blk.1.attn_output.weight"].astype(np.float64)
    expected = (matrix.reshape(128, 4, 32) ** 2).sum(axis=0).mean(axis=1)
    gain = output_gain(file, model_shape(file), 1)
    assert gain is not None
    np.testing.assert_allclose(gain, expected, rtol=1e-5)
    assert len(output_gains(file, model_shape(file))) == 4


#
# text
#


def test_chunks_of_a_short_text_are_disjoint_and_all_over_it(models: dict[str, Path], text: Path) -> None:
    with Vocabulary(models["plain"]) as vocabulary:
        material = make_material(vocabulary, [text], 4096, 4096, "")
        tokens = vocabulary.tokenize(text.read_text())
    assert len(material.fit) >= len(material.measure) >= 1
    assert len(material.check) == 2 * len(material.measure)
    data = bytes(token % 256 for token in tokens)
    taken: set[int] = set()
    for chunk in [*material.fit, *material.measure, *material.check[::2]]:
        own: set[int] = set()  # places of the text; a context is made of several stretches of it
        part = bytes(token % 256 for token in chunk.tokens)
        for start in range(len(part) - 90):  # each has a number in it that no other has
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


def test_both_halves_of_what_is_checked_with_are_scored(models: dict[str, Path], text: Path) -> None:
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
def test_what_is_measured_lies_beyond_the_window(
    models: dict[str, Path], text: Path, window: int, n_tokens: int
) -> None:
    with Vocabulary(models["plain"]) as vocabulary:
        material = make_material(vocabulary, [text], n_tokens, 4096, "", window)
    assert min(len(material.fit), len(material.measure), len(material.check)) >= 1
    for chunk in [*material.measure, *material.check]:
        coded = len(chunk.tokens) - window  # the last token sees so many of them
        assert chunk.window == window
        assert coded >= 16
        assert len(chunk.tokens) <= max(1024, 256 + window)
        assert chunk.first == window + coded // 2
    if n_tokens > 4000 and window < 600:  # of a long text contexts are long
        assert min(len(chunk.tokens) for chunk in material.measure) >= 700
    whole = sum(len(chunk.tokens) for chunk in [*material.fit, *material.measure, *material.check[::2]])
    assert whole <= n_tokens + 16  # such tokens


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


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_what_a_window_holds_is_read_at_once_to_the_same_end(models: dict[str, Path], kind: str) -> None:
    """Several tokens of each text in a step give what one does, in other additions; texts differ in length."""
    prompts = [tiny_models.prompt(60 + 7 * seed, seed=seed) for seed in range(3)]
    read: list[dict[tuple[int, int], Any]] = []
    for window in (0, 30):
        chunks = [Chunk(prompt, 100 * i, window) for i, prompt in enumerate(prompts)]
        with (
            NativeModel(models["plain"]) as model,
            ParallelContext(model, CacheSpec(kind, kind), chunks, 1) as context,
        ):
            seen = [(numbers, at, logits.copy()) for numbers, at, logits in context.read()]
        assert [at for _, at, _ in seen] == sorted({at for _, at, _ in seen})
        read.append(
            {
                (number, at): row
                for numbers, at, logits in seen
                for number, row in zip(numbers, logits, strict=True)
            }
        )
        wanted = {(i, at) for i, chunk in enumerate(chunks) for at in range(chunk.first, len(chunk.tokens))}
        assert set(read[-1]) == wanted
    for place, logits in read[1].items():
        np.testing.assert_allclose(logits, read[0][place], atol=2e-2)


def test_a_text_of_gigabytes_is_not_read_whole(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    size = 3 * 2**30
    with path.open("wb") as file:  # sparse: it takes no room
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


def test_a_character_is_not_cut(tmp_path: Path) -> None:
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


#
# what is chosen
#


def test_the_plan_meets_the_ratio_and_says_why(models: dict[str, Path], found: dict[str, Any]) -> None:
    plan = read_plan(found["plan"])
    assert [group.layers for group in plan.groups] == [(0, 1), (2, 3)]
    with Llama(str(models["plain"]), n_ctx=4096, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert 5.0 <= report.ratio < 5.1
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["bytes"] == pytest.approx(report.bytes, abs=4096)
    assert rows["plan"]["ratio"] == pytest.approx(report.ratio, rel=1e-3)
    assert rows["f16"]["kl"] == 0.0
    assert 0 < rows["q8_0"]["kl"] < rows["plan"]["kl"]
    assert sum(row["share"] for row in found["choices"]) == pytest.approx(1)
    assert plan.notes["choices"] == found["choices"]
    assert plan.notes["checked"]["kl"] == rows["plan"]["kl"]
    for pair, row in zip(plan.groups, found["choices"], strict=True):
        assert row["bits_k"] == pair.layout_k.bits / (2 * pair.d_k)
        assert min(row["sensitivity_k"] + row["sensitivity_v"]) > 0
    printed = table(found)
    for words in ("0+1", "2+3", "ratio 5", "q4_0", str(found["plan"])):
        assert words in printed


def test_the_plan_holds_more_than_q4_0_does_at_its_size(
    models: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=3.56)
    rows = {row["name"]: row for row in found["rows"]}
    assert found["choices"]
    assert rows["plan"]["ratio"] >= 3.56
    assert rows["plan"]["kl"] < rows["q4_0"]["kl"]


def test_bits_go_where_the_model_looks(text: Path, tmp_path: Path) -> None:
    """Layers 2 and 3 attend, and nothing of it gets into the output."""
    tiny = tiny_models.random_model(n_layer=4)
    for layer in (2, 3):
        tiny.weights[f"blk.{layer}.attn_output.weight"][:] = 0
    found = made(tiny.write(tmp_path / "blind.gguf"), text, tmp_path / "plan.gguf", ratio=4.0)
    seen, unseen = found["choices"]
    assert seen["bits_k"] + seen["bits_v"] > unseen["bits_k"] + unseen["bits_v"] + 2
    assert min(seen["bits_k"], seen["bits_v"]) > 3.5  # 3.86 is the mean of all
    assert max(unseen["sensitivity_k"]) < min(seen["sensitivity_k"])


def test_of_two_layers_the_one_that_counts_is_told_better(text: Path, tmp_path: Path) -> None:
    """Layers 0 and 1 share a code, and what layer 1 attends to does not get into the output."""
    tiny = tiny_models.random_model(n_layer=2)
    tiny.weights["blk.1.attn_output.weight"][:] = 0
    found = made(tiny.write(tmp_path / "blind.gguf"), text, tmp_path / "plan.gguf", ratio=6.0)
    (row,) = found["choices"]
    for kind in ("k", "v"):
        first, second = row[f"layer_error_{kind}"]
        assert first < second / 4


@pytest.mark.parametrize("window", [0, 40])
def test_everything_is_measured_with_the_window(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    measure = Meter.measure
    windows: list[int] = []
    folders: list[Path] = []

    def seen(self: Meter, spec: CacheSpec, kind: str, name: str = "") -> Any:
        if spec.minicache is not None and spec.minicache.groups:  # plans without pairs have none
            windows.append(spec.minicache.window)
        folders.append(self.memory.parent)
        return measure(self, spec, kind, name)

    monkeypatch.setattr(Meter, "measure", seen)
    found = made(models["plain"], text, tmp_path / "plan.gguf", window=window)
    assert set(windows) == {window}
    assert len(windows) >= 1 + 8 + 1  # the probes' base, the probes, and the plan
    plan = read_plan(found["plan"])
    assert (plan.window, plan.notes["window"], found["window"]) == (window, window, window)
    assert ("latest 40 tokens are kept as q8_0" in table(found)) == bool(window)
    with Llama(str(models["plain"]), n_ctx=2048, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert report.window == window
    row = found["rows"][0]
    assert row["fixed_bytes"] == pytest.approx(report.fixed_bytes, abs=32 * 20)
    assert row["ratio"] >= 5.0
    # work for another window is other work
    monkeypatch.setattr(Meter, "measure", measure)
    made(models["plain"], text, tmp_path / "plan.gguf", window=window + 1)
    assert len(set(folders)) == 1


def test_a_window_costs_less_loss(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """The same text beyond the same first tokens, read with a cache that keeps the latest and with one that doesn't."""
    found = made(models["plain"], text, tmp_path / "plan.gguf", window=24, ratio=8.0)
    plan = read_plan(found["plan"])
    assert plan.groups
    tensors = {group.first: read_codec(found["plan"], group.first) for group in plan.groups}
    kl = {}
    for window in (0, 24):
        path = tmp_path / f"{window}.gguf"
        write_plan(path, replace(plan, window=window), tensors)
        chunks = {"check": [Chunk(tiny_models.prompt(120, seed=seed), 0, 24) for seed in range(4)]}
        memory = tmp_path / f"{window}.json"
        with NativeModel(models["plain"]) as model, Meter(model, chunks, 1, memory) as meter:
            kl[window] = meter.measure(CacheSpec.parse(str(path)), "check").kl
    assert 0 < kl[24] < kl[0]


def read_codec(path: str, a: int) -> Any:
    tensor = next(one for one in gguf.GGUFReader(path).tensors if one.name == f"group.{a}.codec")
    return np.array(tensor.data)


def test_refining_is_kept_where_it_is_better(
    models: dict[str, Path], text: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    refined = made(models["plain"], text, tmp_path / "plan.gguf", refine=2)
    assert refined["kl_measured"] <= found["kl_measured"]
    assert refined["rows"][0]["ratio"] >= 5.0


def test_the_same_input_gives_the_same_bytes(
    models: dict[str, Path], text: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    again = made(models["plain"], text, tmp_path / "again.gguf")
    assert Path(again["plan"]).read_bytes() == Path(found["plan"]).read_bytes()


def test_what_was_cut_off_is_taken_up(
    models: dict[str, Path],
    text: Path,
    tmp_path: Path,
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    n_run = 0
    read = Meter._read

    def interrupted(self: Meter, spec: CacheSpec, kind: str) -> Any:
        nonlocal n_run
        n_run += 1
        if n_run == 5:
            raise KeyboardInterrupt
        return read(self, spec, kind)

    told: list[str] = []
    monkeypatch.setattr(Progress, "__call__", lambda self, fraction, stage, detail="": told.append(detail))
    monkeypatch.setattr(Meter, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(models["plain"], text, tmp_path / "plan.gguf")
    assert not (tmp_path / "plan.gguf").exists()
    done = [detail for detail in told if detail.startswith(("all layers", "K of", "V of"))]
    assert len(done) >= 3
    told.clear()
    monkeypatch.setattr(capture_module.Observed, "read", None)  # nothing is captured again
    again = made(models["plain"], text, tmp_path / "plan.gguf")
    assert not set(told) & set(done[:-1])  # and nothing measured again but what was cut off
    assert Path(again["plan"]).read_bytes() == Path(found["plan"]).read_bytes()
    assert list((tmp_path / "cache" / "calibrations").iterdir()) == []  # it is done, and nothing is left


def test_two_at_once_dont_meddle_with_each_other(tmp_path: Path) -> None:
    with work_folder(tmp_path / "work") as one:
        assert one == tmp_path / "work"
        (one / "file").write_text("kept")
        command = [sys.executable, "-c", WORK, str(tmp_path / "work")]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
        assert done.stdout.strip() != str(one)
        assert [path.name for path in one.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), work_folder(tmp_path / "work") as one:
        raise KeyError
    assert (tmp_path / "work").is_dir()


WORK = """
import sys
from pathlib import Path
from minicache_cpp.host.work_folder import work_folder
with work_folder(Path(sys.argv[1])) as folder:
    print(folder)
"""


def test_max_kl_is_kept(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=None, max_kl=0.01)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["kl"] <= 0.01
    assert rows["plan"]["ratio"] > 1.88
    # half the loss takes more room
    other = made(models["plain"], text, tmp_path / "other.gguf", ratio=None, max_kl=0.002)
    assert next(row for row in other["rows"] if row["name"] == "plan")["ratio"] < rows["plan"]["ratio"]


def test_a_budget_is_kept_codecs_included(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    budget = 300_000
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=None, budget=budget, n_ctx=2048)
    with Llama(str(models["plain"]), n_ctx=2048, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert budget * 0.95 < report.bytes <= budget + 8 * 32  # alignment of buffers is not told
    assert report.fixed_bytes > 10_000


def test_a_budget_pays_for_the_window(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(
        models["plain"], text, tmp_path / "plan.gguf", ratio=None, budget=300_000, n_ctx=2048, window=100
    )
    with Llama(str(models["plain"]), n_ctx=2048, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert report.bytes_window == 2 * 100 * (4 * 68 + 8)
    assert report.bytes <= 300_000 + 8 * 32
    with pytest.raises(
        MiniCacheError, match=r"cannot reach.*window of 100 tokens takes 0\.0534 MiB, --window 0 does"
    ):
        made(models["plain"], text, tmp_path / "plan.gguf", ratio=None, budget=50_000, n_ctx=2048, window=100)


@pytest.mark.parametrize("ratio", [1.0, 1.5, 1.9, 2.5])
def test_no_plan_is_worse_than_a_plain_cache_of_its_size(
    models: dict[str, Path], text: Path, tmp_path: Path, ratio: float
) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=ratio)
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["ratio"] >= ratio
    if ratio <= 1.0:
        assert found["kl_measured"] == 0.0
    if ratio <= 1.88:
        assert found["kl_measured"] <= rows["q8_0"]["kl"] * 2


def test_where_codes_are_bad_the_plan_is_plain(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken fit measures badly, and loses against plain types."""
    from minicache_cpp.calibrate import code_fit

    monkeypatch.setattr(code_fit, "GAUSSIAN_STEPS", dict.fromkeys(range(1, 9), 4.0))
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=1.88)
    assert not read_plan(found["plan"]).groups
    assert {row["kind"] for row in found["choices"]} <= {"plain"}
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["ratio"] >= 1.88
    assert found["kl_measured"] <= 2 * rows["q8_0"]["kl"]
    assert "plain" in found["why"]


def test_types_by_layer_go_where_the_model_looks(text: Path, tmp_path: Path) -> None:
    """Where codes can't be had; what layer 1 attends to does not get into the output."""
    tiny = tiny_models.random_model(n_layer=3)
    tiny.weights["blk.1.attn_output.weight"][:] = 0
    path = tiny.write(tmp_path / "blind.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicache_cpp.calibrate.planner.Planner.coded", lambda *_: None)
        found = made(path, text, tmp_path / "plan.gguf", ratio=2.2)
    plan = read_plan(found["plan"])
    assert not plan.groups
    assert [row["layers"] for row in found["choices"]] == [[0, 1], [2]]
    row_bytes = [
        sum(GGML_TYPES[name].row_bytes(32) for name in types) for types in plan.plain_types().values()
    ]
    assert row_bytes[1] == 2 * 18
    assert min(row_bytes[0], row_bytes[2]) > 2 * 18
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["ratio"] >= 2.2
    assert rows["plan"]["kl"] < rows["q4_0"]["kl"]
    printed = table(found)
    assert all(words in printed for words in ("\n0+1  ", "\n2  ", "plain ", "types by layer"))
    with Llama(str(path), n_ctx=512, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert [(one.type_k, one.type_v) for one in report.layers] == list(plan.plain_types().values())


def test_an_odd_layer_has_a_code_of_its_own(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(models["odd"], text, tmp_path / "plan.gguf", ratio=6.0)
    plan = read_plan(found["plan"])
    assert [group.layers for group in plan.groups] == [(0, 1), (2,)]
    row = found["choices"][-1]
    assert (row["layers"], row["kind"]) == ([2], "code")
    assert row["bits_k"] == plan.groups[1].layout_k.bits / plan.groups[1].d_k
    assert min(row["sensitivity_k"] + row["sensitivity_v"]) > 0
    with Llama(str(models["odd"]), n_ctx=4096, minicache=found["plan"], verbose=False) as llm:
        assert 6.0 <= llm.kv_report().ratio < 6.1


@pytest.mark.parametrize("group", ["4", "auto"])
def test_four_layers_share_a_code(models: dict[str, Path], text: Path, tmp_path: Path, group: str) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=8.0, group=group)
    groups = [one.layers for one in read_plan(found["plan"]).groups]
    assert groups in ([[(0, 1, 2, 3)]] if group == "4" else [[(0, 1, 2, 3)], [(0, 1), (2, 3)]])
    assert [tuple(row["layers"]) for row in found["choices"]] == groups
    assert len(found["choices"][0]["sensitivity_k"]) == len(groups[0])
    assert "+".join(map(str, groups[0])) in table(found)
    with Llama(str(models["plain"]), n_ctx=4096, minicache=found["plan"], verbose=False) as llm:
        assert 8.0 <= llm.kv_report().ratio < 8.5  # units of a small model are large


@pytest.mark.parametrize(
    ("most", "groups"),
    [(1, [(0,), (1,), (2,), (3,), (4,)]), (2, [(0, 1), (2, 3), (4,)]), (4, [(0, 1, 2), (3, 4)])],
)
def test_layers_are_grouped_evenly(most: int, groups: list[tuple[int, ...]]) -> None:
    rope = Rope("halves", (1.0, 0.1))
    layers = [Layer(2, 32, 32)] * 5
    shape = ModelShape("llama", 4096, 4, layers)
    assert cut_into_groups(shape, [rope] * 5, most) == groups
    # neither across another shape, nor where K is turned in another way, nor over a layer that has none
    mixed = [layers[0], Layer(4, 32, 32), Layer(0, 0, 0), *layers[:3]]
    other = ModelShape("llama", 4096, 4, mixed)
    ropes = [rope, rope, None, rope, Rope("halves", (1.0, 0.2)), Rope("halves", (1.0, 0.2))]
    assert cut_into_groups(other, ropes, 4) == [(0,), (1,), (3,), (4, 5)]


def test_a_model_without_rope_has_no_blocks(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(models["alibi"], text, tmp_path / "plan.gguf")
    assert found["rope_block"] == 0
    assert found["choices"]
    with Llama(str(models["alibi"]), n_ctx=1024, minicache=found["plan"], verbose=False) as llm:
        assert llm.kv_report().mode == "code"


def test_a_model_whose_layers_cant_be_coded_is_told_so(
    models: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(ratio=3.0, tokens=1024, threads=1, texts=(text,))
    found = calibrate(models["window"], options, tmp_path / "plan.gguf", Progress("calibrate"))
    assert found["choices"] == []
    assert "gets a plain cache" in capsys.readouterr().err
    with Llama(str(models["window"]), n_ctx=512, minicache=found["plan"], verbose=False) as llm:
        assert llm.kv_report().type_k == found["plain"]["type_k"]


def test_a_ratio_that_cant_be_is_refused_with_the_best_one(
    models: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    with pytest.raises(MiniCacheError, match=r"cannot reach ratio 1000.*times smaller"):
        made(models["plain"], text, tmp_path / "plan.gguf", ratio=1000.0)


#
# automatically
#


def test_auto_calibrates_once(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bundled, "calibration_files", lambda: [text])
    arguments: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}
    with pytest.warns(MiniCacheWarning, match="plain q8_0.*minicache calibrate"):
        llm = Llama(str(models["plain"]), calibrate="never", **arguments)
    assert llm.kv_report().type_k == "q8_0"
    assert llm.kv_report().ratio == pytest.approx(16 / 8.5)
    llm.close()
    assert find_plan(read_gguf(models["plain"])) is None
    with pytest.warns(MiniCacheWarning, match="calibrated now, once"):
        llm = Llama(str(models["plain"]), calibrate="once", **arguments)
    assert llm.kv_report().ratio >= 4.99
    assert llm.minicache == MiniCache(plan=plan_path(read_gguf(models["plain"])))
    llm.close()
    # now it is there, and nothing is said
    monkeypatch.setattr("minicache_cpp.calibrate.calibration.calibrate", None)
    for choice in ("once", "never", None):
        with Llama(str(models["plain"]), calibrate=choice, **arguments) as llm:
            assert llm.kv_report().mode == "code"


def test_auto_makes_a_plan_of_an_older_version_anew(
    models: dict[str, Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    found: dict[str, Any],
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bundled, "calibration_files", lambda: [text])
    path = plan_path(read_gguf(models["plain"]))
    plan = read_plan(found["plan"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicache_cpp.cache.plan_file.VERSION", 2)
        write_plan(path, plan, {group.first: read_codec(found["plan"], group.first) for group in plan.groups})
    with pytest.raises(MiniCacheError, match="another version"):
        read_plan(path)
    arguments: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}
    with (
        pytest.warns(MiniCacheWarning, match="calibrated now, once"),
        Llama(str(models["plain"]), calibrate="once", **arguments) as llm,
    ):
        assert llm.kv_report().mode == "code"
    assert [group.layers for group in read_plan(path).groups] == [group.layers for group in plan.groups]


def test_auto_does_without_where_calibration_fails(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bundled, "calibration_files", lambda: [tmp_path / "none.txt"])
    arguments: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}
    with pytest.warns(MiniCacheWarning, match="can't be calibrated.*none.txt"):
        llm = Llama(str(models["plain"]), calibrate="once", **arguments)
    assert llm.kv_report().type_k == "q8_0"
    llm.close()


#
# the command
#


def run(*arguments: object, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "minicache_cpp.calibrate", "--threads", "1", *map(str, arguments)]
    env = os.environ | ({"MINICACHE_CACHE_DIR": str(cache)} if cache else {})
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False, env=env)


def test_the_command_writes_where_auto_looks(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    arguments = [models["plain"], "--text", text, "--tokens", 1024, "--ratio", 6, "--rope-block", 32]
    done = run(*arguments, "--json", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plan"] == str(tmp_path / "plans" / f"{found['fingerprint']}.gguf")
    assert found["rope_block"] == 32
    assert "measuring" in done.stderr
    assert [one.name for one in tmp_path.iterdir() if list(one.iterdir())] == ["plans"]
    done = run(*arguments, "-o", tmp_path / "here.gguf", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "here.gguf") in done.stdout
    assert (tmp_path / "here.gguf").read_bytes() == Path(found["plan"]).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none.gguf"], "does not exist"),
        (["{model}", "--ratio", "0.5"], "1 or more"),
        (["{model}", "--ratio", "nan"], "1 or more"),
        (["{model}", "--max-kl", "0"], "more than 0"),
        (["{model}", "--budget", "many", "--ctx", "100"], "512MiB"),
        (["{model}", "--budget", "1MiB"], "go together"),
        (["{model}", "--ctx", "100"], "go together"),
        (["{model}", "--budget", "1KiB", "--ctx", "4096"], "cannot reach"),
        (["{model}", "--rope-block", "2000"], "0 to 1024"),
        (["{model}", "--window", "-1"], "0 to 65536"),
        (["{model}", "--tokens", "200"], "with --window 64"),
        (["{model}", "--tokens", "5"], "from 128"),
        (["{model}", "--threads", "-1"], "--threads"),
        (["{model}", "--text", "{tmp}/none.txt"], "none.txt does not exist"),
        (["{model}", "--text", "{tmp}"], "is a directory"),
        (["{model}", "-o", "{tmp}/none/plan.gguf"], "folder that exists"),
        (["{model}", "-o", "{tmp}"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    models: dict[str, Path], tmp_path: Path, arguments: list[str], words: str
) -> None:
    names = {"{tmp}": str(tmp_path), "{model}": str(models["plain"])}
    for name, path in names.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    done = run(*arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("calibrate: ")]
    assert len(lines) == 1, done.stderr
    assert words in lines[0]


def test_targets_exclude_each_other(models: dict[str, Path]) -> None:
    assert run(models["plain"], "--ratio", 5, "--max-kl", 0.1).returncode == 2

"""Invariant I1: the reported bytes are those that are allocated."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import KVReport, MiniCache
from oracle.model import Config, Oracle
from oracle.quant import TYPES, row_bytes
from support import contexts, tiny_models
from support.contexts import Context, captured_log, interleaved, run
from support.loaded import Loaded
from support.tiny_models import Shape, prompt

INDEX_STATISTICS = 2  # rows of two numbers after the slots


def predicted(
    shape: Shape, n_pairs: int, kind: str, n_cells: int, n_stream: int = 1, block: int = 0, pool: str = "q8_0"
) -> dict[str, int]:
    """The bytes of each part, computed from the description of the layout alone."""
    row = shape.n_head_kv * shape.head_size
    rows, slots = n_cells * n_stream, -(-n_cells // block) * n_stream if block else 0
    return {
        "bytes_directions": n_pairs * rows * 2 * row_bytes(kind, row),
        "bytes_magnitudes": n_pairs * rows * 4 * shape.n_head_kv * 2,
        "bytes_pool": n_pairs * slots * 4 * row_bytes(pool, row),
        "bytes_index": n_pairs * (slots + INDEX_STATISTICS * n_stream) * 2 * 4,
        "bytes_unmerged": (shape.n_layer - 2 * n_pairs) * rows * 2 * row_bytes(kind, row),
    }


def assert_predicted(report: KVReport, parts: dict[str, int]) -> None:
    assert {name: getattr(report, name) for name in parts} == parts
    assert report.bytes == sum(parts.values()) + report.fixed_bytes
    assert 0 <= report.fixed_bytes <= 64 * 10 * len(report.layers)  # at most one alignment for each tensor


def logged_mib(lines: list[tuple[int, str]]) -> float:
    """The MiB that the backends say they have allocated for the cache."""
    return sum(
        float(size) for _, text in lines for size in re.findall(r"KV buffer size = +([0-9.]+) MiB", text)
    )


@pytest.mark.parametrize("retain", [0.0, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_bytes_are_as_predicted_and_as_allocated(
    random_model: Loaded, kind: str, unified: bool, retain: float
) -> None:
    config = Config(
        random_model.pairs, retain=retain, type_k=kind, type_v=kind, n_cells=512, n_seq_max=3, unified=unified
    )
    with captured_log() as lines, Context.of(random_model.model, config) as ctx:
        report = ctx.report()
    assert report.n_stream == config.n_stream
    assert report.n_cells == 512
    shape = random_model.tiny.shape
    assert_predicted(report, predicted(shape, 1, kind, 512, config.n_stream, config.block))
    # the log has two digits for each of two buffers
    assert logged_mib(lines) == pytest.approx(report.bytes / 2**20, abs=0.011)


def test_bytes_of_every_layer_sum_up(random_model: Loaded) -> None:
    config = Config(((1, 2), (3, 4)), retain=0.1, n_cells=256)
    with Context.of(random_model.model, config) as ctx:
        report = ctx.report()
    assert [layer.kind for layer in report.layers] == [
        "plain", "merged", "merged", "merged", "merged", "plain",
    ]  # fmt: skip
    assert [layer.group for layer in report.layers] == [None, (1, 2), (1, 2), (3, 4), (3, 4), None]
    assert [layer.side for layer in report.layers] == [None, 0, 1, 0, 1, None]
    assert report.groups == [(1, 2), (3, 4)]
    assert report.pairs == [(1, 2), (3, 4)]
    assert sum(layer.bytes for layer in report.layers) == report.bytes - report.fixed_bytes


def test_baselines_are_what_plain_contexts_take(random_model: Loaded) -> None:
    config = Config(random_model.pairs, retain=0.05, type_k="q4_0", type_v="q8_0", n_cells=512)
    with Context.of(random_model.model, config) as ctx:
        report = ctx.report()
    plain = {}
    for types in (("f16", "f16"), ("q4_0", "q8_0")):
        with Context.of(random_model.model, Config(type_k=types[0], type_v=types[1], n_cells=512)) as ctx:
            own = ctx.report()
            assert not own.active
            assert own.bytes == own.bytes_plain
            plain[types] = own.bytes
    assert report.bytes_f16 == plain["f16", "f16"]
    assert report.bytes_plain == plain["q4_0", "q8_0"]
    assert report.total_ratio == pytest.approx(report.bytes_f16 / report.bytes)
    assert report.ratio == pytest.approx(report.bytes_f16 / (report.bytes - report.fixed_bytes))


def test_a_real_model_takes_exactly_the_predicted_bytes(smollm2: Path) -> None:
    """With S = L/2, a context of 4096, f16 and no pool."""
    model = contexts.Model(smollm2)
    with Context(model, MiniCache(start=0.5, retain=0), n_ctx=4096) as ctx:
        report = ctx.report()
    assert report.pairs == tiny_models.default_pairs(model.n_layer)
    shape = Shape(n_layer=30, n_head_kv=3, head_size=64)
    assert_predicted(report, predicted(shape, len(report.pairs), "f16", 4096))
    assert report.ratio > 1.25


def test_nothing_grows(random_model: Loaded) -> None:
    config = Config(random_model.pairs, retain=0.05)
    with Context.of(random_model.model, config) as ctx:
        before = ctx.report().bytes
        ctx.decode(run(prompt(250)))
        assert ctx.report().bytes == before


def test_retained_tokens_and_distances(random_model: Loaded) -> None:
    config = Config(((0, 1), (2, 3)), retain=0.1, n_ubatch=16, n_seq_max=2)
    tokens = interleaved([prompt(47, 1), prompt(47, 2)])
    oracle = Oracle(random_model.tiny, config)
    oracle.decode(tokens)
    with Context.of(random_model.model, config) as ctx:
        empty = ctx.report()
        assert empty.retained == 0
        assert empty.distance is None
        assert empty.retained_max == 2 * 26
        ctx.decode(tokens)
        report = ctx.report()
        ctx.seq_rm(0, -1, -1)
        ctx.seq_rm(1, -1, -1)
        assert ctx.report().retained == 0
    assert report.retained == sum(len(oracle.retained(pair)) for pair in config.groups) == 2 * 10
    for pair in config.groups:
        distance_k, distance_v = np.mean(oracle.groups[pair].distances, axis=0)
        for layer in pair:
            assert report.layers[layer].n_merged == len(tokens)
            assert report.layers[layer].distance_k == pytest.approx(distance_k, abs=1e-4)
            assert report.layers[layer].distance_v == pytest.approx(distance_v, abs=1e-4)
    assert report.layers[4].n_merged == 0
    assert report.layers[4].distance_k is None


@pytest.mark.parametrize(
    ("retain", "block"), [(0.05, 20), (0.3, 3), (0.4, 2), (0.7, 1), (1.0, 1), (0.001, 1000), (0.0, 0)]
)
def test_retention_as_granted(random_model: Loaded, retain: float, block: int) -> None:
    with Context.of(random_model.model, Config(random_model.pairs, retain=retain)) as ctx:
        report = ctx.report()
    assert report.retain == pytest.approx(1 / block if block else 0)
    assert report.retained_max == (-(-256 // block) if block else 0)


@pytest.mark.parametrize(
    ("minicache", "pairs"),
    [
        (MiniCache(), [(3, 4)]),
        (MiniCache(start=0.0), [(0, 1), (2, 3), (4, 5)]),
        (MiniCache(start=0.34), [(2, 3), (4, 5)]),
        (MiniCache(start=2), [(2, 3), (4, 5)]),
        (MiniCache(start=1), [(1, 2), (3, 4)]),
        (MiniCache(pairs=[(4, 5), (0, 1)]), [(0, 1), (4, 5)]),
        (MiniCache(pairs=[(0, 5)]), [(0, 5)]),
    ],
)
def test_which_layers_are_merged(
    random_model: Loaded, minicache: MiniCache, pairs: list[tuple[int, int]]
) -> None:
    with Context(random_model.model, minicache) as ctx:
        assert ctx.report().pairs == pairs

"""How layers are divided into groups."""

from __future__ import annotations

import pytest

from minicache_cpp.calibrate.grouping import cut_into_groups, cut_regions
from minicache_cpp.calibrate.rope import Rope
from minicache_cpp.modelfile.shape import Layer, ModelShape


@pytest.mark.parametrize(
    ("most", "groups"),
    [(1, [(0,), (1,), (2,), (3,), (4,)]), (2, [(0, 1), (2, 3), (4,)]), (4, [(0, 1, 2), (3, 4)])],
)
def test_layers_are_grouped_evenly(most: int, groups: list[tuple[int, ...]]) -> None:
    rope = Rope("halves", (1.0, 0.1))
    layers = [Layer(2, 32, 32)] * 5
    shape = ModelShape("llama", 4096, 4, layers)
    assert cut_into_groups(shape, [rope] * 5, most) == groups
    # no group spans layers of different shape or RoPE, or a layer without a cache
    mixed = [layers[0], Layer(4, 32, 32), Layer(0, 0, 0), *layers[:3]]
    other = ModelShape("llama", 4096, 4, mixed)
    ropes = [rope, rope, None, rope, Rope("halves", (1.0, 0.2)), Rope("halves", (1.0, 0.2))]
    assert cut_into_groups(other, ropes, 4) == [(0,), (1,), (3,), (4, 5)]


def test_each_region_of_a_model_can_be_cut_in_several_ways() -> None:
    rope = Rope("halves", (1.0, 0.1))
    shape = ModelShape("llama", 4096, 4, [Layer(2, 32, 32)] * 7)
    assert cut_regions(shape, [rope] * 7, (2,)) == [[[(0, 1)]], [[(2, 3)]], [[(4, 5)]], [[(6,)]]]
    assert cut_regions(shape, [rope] * 7, (1, 2, 4)) == [
        [[(0, 1, 2, 3)], [(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)]],
        [[(4, 5, 6)], [(4, 5), (6,)], [(4,), (5,), (6,)]],
    ]
    # a region of one layer can be cut in one way only
    assert cut_regions(shape, [rope] * 7, (1, 2))[-1] == [[(6,)]]

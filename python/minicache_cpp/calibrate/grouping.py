"""How layers are cut into groups that share a code.

The more layers share a code, the less is lost in the same bytes, and the more attention reads: a group's whole row for
each of its layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..modelfile.shape import ModelShape
from .rope import Rope

DEFAULT_GROUP = "2"


@dataclass(frozen=True)
class Grouping:
    """The ways to group layers that a plan is chosen from."""

    # the most layers of a group; of several sizes, each region of the model has the one that costs it least
    sizes: tuple[int, ...]
    # the bytes of a token that a unit which attention reads is worth
    time: float = 0.0

    def __str__(self) -> str:
        return "codes of single layers" if self.sizes == (1,) else f"codes of up to {max(self.sizes)} layers"


# By --group; "fast" is --fast. What units are worth goes by a study of smollm2-135m (docs/calibration.md): up to one
# byte, plans lose what they are expected to lose; with two, pairs lost 1.4 times as much, where 1.09 was expected.
GROUPINGS = {
    "1": Grouping((1,)),
    "2": Grouping((2,)),
    "4": Grouping((4,)),
    "auto": Grouping((1, 2, 4), time=0.5),
    "fast": Grouping((1,), time=1.0),
}


def groupings_of(group: str, shape: ModelShape) -> tuple[Grouping, ...]:
    """The groupings that --group tries, one after the other.

    Where other layers lie between those whose cache grows, neighbours may have too little in common to share a code.
    """
    asked = GROUPINGS[group]
    singles = Grouping((1,), asked.time)
    return (singles, asked) if shape.mixed and asked != singles else (asked,)


def cut_into_groups(shape: ModelShape, ropes: Sequence[Rope | None], most: int) -> list[tuple[int, ...]]:
    """Cuts each run of alike layers into groups of at most `most` layers, whose sizes differ by at most one."""
    return [group for run in alike_runs(shape, ropes) for group in cut_evenly(run, most)]


def cut_evenly(layers: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Cuts layers into groups of at most `most`, whose sizes differ by at most one."""
    n_group = -(-len(layers) // most)
    size, larger = divmod(len(layers), n_group)
    sizes = [size + (number < larger) for number in range(n_group)]
    return [tuple(layers[end - size : end]) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def alike_runs(shape: ModelShape, ropes: Sequence[Rope | None]) -> list[list[int]]:
    """The runs of neighbours, among the layers whose cache grows, of one shape and with K turned in the same way."""
    runs: list[list[int]] = []
    for number, layer in enumerate(shape.layers):
        if not layer.grows:
            continue
        last = runs[-1][-1] if runs else -1
        if last >= 0 and shape.layers[last] == layer and ropes[last] == ropes[number]:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def cut_regions(
    shape: ModelShape, ropes: Sequence[Rope | None], sizes: Sequence[int]
) -> list[list[list[tuple[int, ...]]]]:
    """The ways to cut each region of a model into groups of these sizes at most: region, way, group.

    A region is a group of the largest size.
    """
    found = []
    for layers in cut_into_groups(shape, ropes, max(sizes)):
        ways = [cut_evenly(layers, size) for size in sorted(sizes, reverse=True)]
        found.append([way for number, way in enumerate(ways) if way not in ways[:number]])
    return found

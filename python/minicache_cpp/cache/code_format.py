"""The bytes of a shared code, as minicache-code.h lays them down: what a group's code and codec take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WIDTHS = (8, 6, 5, 4, 3, 2, 1)  # bits of a code's segments, widest first
UNIT = 16  # coefficients that share a width
MAX_LAYERS = 4  # that share one code

Kind = Literal["k", "v"]
KINDS: tuple[Kind, Kind] = ("k", "v")


def mag_bytes(n_layer: int) -> int:
    """Bytes of the layers' magnitudes, at the head of a row, whose planes begin at even places."""
    return n_layer + n_layer % 2


@dataclass(frozen=True)
class Layout:
    """Units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits."""

    units: tuple[int, ...] = (0,) * len(WIDTHS)

    @classmethod
    def of(cls, unit_widths: Sequence[int]) -> Layout:
        """The layout of units of these widths, 0 for those that are left out."""
        return cls(tuple(sum(1 for one in unit_widths if one == width) for width in WIDTHS))

    @property
    def widths(self) -> list[int]:
        """The bits of each unit."""
        return [width for width, n in zip(WIDTHS, self.units, strict=True) for _ in range(n)]

    @property
    def size(self) -> int:
        """Coefficients of a code."""
        return UNIT * sum(self.units)

    @property
    def bits(self) -> int:
        """Bits of all coefficients."""
        return UNIT * sum(self.widths)

    def row_bytes(self, n_layer: int) -> int:
        """Bytes of a code row, of one KV head of one token, which so many layers share."""
        return mag_bytes(n_layer) + self.bits // 8


@dataclass(frozen=True)
class GroupFormat:
    """How the K and V of a group's layers are kept: as codes, or, of two layers, in bases."""

    layers: tuple[int, ...]  # the last is the deepest
    n_head_kv: int
    d_k: int
    d_v: int
    layout_k: Layout = Layout()
    layout_v: Layout = Layout()
    # in place of codes, how many of the two layers' K and V are turned into a basis: 1 for layer b's alone
    bases_k: int = 0
    bases_v: int = 0

    @property
    def first(self) -> int:
        """The layer that the group is named by."""
        return self.layers[0]

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    @property
    def basis_bytes(self) -> int:
        """Bytes of the bases, float32; V's are there twice, as the attention's result is turned back."""
        return 4 * self.n_head_kv * (self.bases_k * self.d_k**2 + 2 * self.bases_v * self.d_v**2)

    @property
    def token_bytes(self) -> int:
        return self.n_head_kv * (
            self.layout_k.row_bytes(self.n_layer) + self.layout_v.row_bytes(self.n_layer)
        )

    def codec_bytes(self, n_rot: int = 0) -> int:
        """Bytes of the codec; in a plan file it has no frequencies, n_rot = 0."""
        heads, n = self.n_head_kv, self.n_layer
        words = heads * (4 * n + n * self.d_k + self.layout_k.size + n * self.d_v + self.layout_v.size)
        halves = heads * n * (self.d_k * self.layout_k.size + self.d_v * self.layout_v.size)
        return 4 * (n_rot // 2) + 4 * words + 2 * halves

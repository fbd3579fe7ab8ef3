"""The sizes of a group's codes and codec, whose bytes minicache-code.h defines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from typing import Literal

# the bits of a coefficient in each segment of a code, widest first
WIDTHS = (8, 6, 5, 4, 3, 2, 1)
# coefficients that share a width
UNIT = 16
# the most layers that can share a code
MAX_LAYERS = 4

# of the table in front of a codec in memory: the layouts of a KV head's K and V, and where its codes begin
HEAD_BYTES = 2 * 16

Kind = Literal["k", "v"]
KINDS: tuple[Kind, Kind] = ("k", "v")


def mag_bytes(n_layer: int) -> int:
    """The bytes of the layers' magnitudes at the head of a row; what follows them begins at an even byte."""
    return n_layer + n_layer % 2


@dataclass(frozen=True)
class Layout:
    """How many units of 16 coefficients a code has of each width in WIDTHS."""

    units: tuple[int, ...] = (0,) * len(WIDTHS)

    @classmethod
    def of(cls, unit_widths: Sequence[int]) -> Layout:
        """The layout of units of these widths; a width of 0 leaves its unit out."""
        return cls(tuple(sum(1 for one in unit_widths if one == width) for width in WIDTHS))

    @property
    def widths(self) -> list[int]:
        """The width of each unit."""
        return [width for width, n in zip(WIDTHS, self.units, strict=True) for _ in range(n)]

    @property
    def size(self) -> int:
        """The coefficients of a code."""
        return UNIT * sum(self.units)

    @property
    def bits(self) -> int:
        """The bits of all coefficients."""
        return UNIT * int(sum(map(mul, WIDTHS, self.units)))

    def row_bytes(self, n_layer: int) -> int:
        """The bytes of a code row, of one token and KV head, which n_layer layers share."""
        return mag_bytes(n_layer) + self.bits // 8


# one for each KV head
Layouts = tuple[Layout, ...]


def token_row_bytes(layouts: Layouts, n_layer: int) -> int:
    """The bytes of a token's row: the code rows of all KV heads, one after the other."""
    return sum(one.row_bytes(n_layer) for one in layouts)


@dataclass(frozen=True)
class GroupFormat:
    """How the K and V of a group's layers are kept: as codes, or those of two layers after a change of basis."""

    # the deepest is the last
    layers: tuple[int, ...]
    n_head_kv: int
    d_k: int
    d_v: int
    # none without codes
    layouts_k: Layouts = ()
    layouts_v: Layouts = ()
    # without codes, how many of the two layers have basis matrices for K and for V: 1 for layer b alone
    n_basis_k: int = 0
    n_basis_v: int = 0

    @property
    def first(self) -> int:
        """The layer that names the group in a plan file."""
        return self.layers[0]

    @property
    def n_layer(self) -> int:
        return len(self.layers)

    @property
    def basis_bytes(self) -> int:
        """The bytes of the basis matrices, in float32.

        Those of V are stored twice, because the result of attention is turned back.
        """
        return 4 * self.n_head_kv * (self.n_basis_k * self.d_k**2 + 2 * self.n_basis_v * self.d_v**2)

    @property
    def token_bytes(self) -> int:
        """The bytes of a token's codes."""
        return sum(token_row_bytes(layouts, self.n_layer) for layouts in (self.layouts_k, self.layouts_v))

    @property
    def file_codec_bytes(self) -> int:
        """The bytes of the codec in a plan file."""
        heads, n = self.n_head_kv, self.n_layer
        size_k, size_v = (sum(one.size for one in layouts) for layouts in (self.layouts_k, self.layouts_v))
        words = heads * n * (4 + self.d_k + self.d_v) + size_k + size_v
        halves = n * (self.d_k * size_k + self.d_v * size_v)
        return 4 * words + 2 * halves

    def codec_bytes(self, n_rot: int) -> int:
        """The bytes of the codec in memory, which begins with the heads' layouts and the frequencies of RoPE."""
        # as minicache_turn_pairs_of() in minicache-code.h counts them
        n_pair = n_rot // 2
        return HEAD_BYTES * self.n_head_kv + 4 * n_pair + self.file_codec_bytes

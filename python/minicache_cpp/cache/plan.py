"""A plan: which layers of one model share storage, and how. docs/plan.md has the file format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .code_format import GroupFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


DEFAULT_T = 0.6


@dataclass(frozen=True)
class PlainLayer:
    """The cache types of a layer that is in no group."""

    layer: int
    type_k: str
    type_v: str

    @property
    def types(self) -> tuple[str, str]:
        return self.type_k, self.type_v


@dataclass(frozen=True)
class Plan:
    """What a plan file says, the codecs and bases left out."""

    fingerprint: str  # of the model it was made for
    n_layer: int
    rope_block: int = 0  # K is coded relative to the last multiple of this position; 0: as it is
    type_k: str = "f16"  # of the layers that are in no group, and of an aligned plan's directions
    type_v: str = "f16"
    plain: tuple[PlainLayer, ...] = ()  # layers that are in no group and have types of their own
    retain: float = 0.0  # fraction of tokens that the layers of a group keep as they are
    pool_type: str = "f16"  # of those, and of the window
    window: int = 0  # the latest tokens of each stream, which the layers of a group keep as they are
    groups: tuple[GroupFormat, ...] = ()
    mode: str = "code"  # or "aligned": SLERP in bases
    t: float = DEFAULT_T  # of SLERP
    model: str = ""  # the model's name
    tool: str = ""  # what wrote the plan
    text: str = ""  # what it was fitted to
    notes: dict[str, Any] = field(
        default_factory=dict, compare=False
    )  # choices, sensitivities, what was measured

    def plain_types(self) -> dict[int, tuple[str, str]]:
        """The types of K and V of each layer that is in no group."""
        grouped = {layer for group in self.groups for layer in group.layers}
        own = {one.layer: one.types for one in self.plain}
        common = self.type_k, self.type_v
        return {layer: own.get(layer, common) for layer in range(self.n_layer) if layer not in grouped}

    @property
    def pool_types(self) -> tuple[str, str]:
        """The types of K and V of the retained tokens and of the window."""
        return self.pool_type, self.pool_type

    @property
    def retain_block(self) -> int:
        """Consecutive cells that share one retained token; 0 where none is retained."""
        from .native_settings import retain_block

        return retain_block(self.retain)


@dataclass(frozen=True)
class Bases:
    """An aligned group's matrices, [layers, n_head_kv, d, d], of layer b alone or of a and b: W x is merged for x."""

    k: NDArray[np.float32]
    v: NDArray[np.float32]


def codec_name(group: GroupFormat) -> str:
    return f"group.{group.first}.codec"


def basis_name(group: GroupFormat, kind: str) -> str:
    return f"group.{group.first}.basis_{kind}"

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
    """What a plan file says, without its codecs and basis matrices."""

    # of the model that the plan was made for
    fingerprint: str
    n_layer: int
    # K is coded relative to the last multiple of this position; 0: as it is after RoPE
    rope_block: int = 0
    # of the layers that are in no group, and of an aligned plan's directions
    type_k: str = "f16"
    type_v: str = "f16"
    # layers that are in no group and have types of their own
    plain: tuple[PlainLayer, ...] = ()
    # the fraction of tokens that the layers of a group keep unmerged
    retain: float = 0.0
    # the type of those tokens, and of the tokens in the window
    pool_type: str = "f16"
    # how many tokens of each stream, the first and the latest ones, the layers of a group keep unmerged
    window: int = 0
    groups: tuple[GroupFormat, ...] = ()
    # "code", or "aligned": SLERP after a change of basis
    mode: str = "code"
    # the parameter of SLERP
    t: float = DEFAULT_T
    # the name of the model, the program that wrote the plan, and the text that it was fitted to
    model: str = ""
    tool: str = ""
    text: str = ""
    # for people and tools: choices, sensitivities, measurements
    notes: dict[str, Any] = field(default_factory=dict, compare=False)

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
        """How many consecutive cells share one retained token; 0 if none is retained."""
        from .native_settings import retain_block

        return retain_block(self.retain)


@dataclass(frozen=True)
class BasisMatrices:
    """The matrices W of an aligned group, for K and for V: for layer b alone, or for both layers.

    The vector W x is merged instead of x.

    k [layers, n_head_kv, d_k, d_k], v [layers, n_head_kv, d_v, d_v]
    """

    k: NDArray[np.float32]
    v: NDArray[np.float32]


def codec_name(group: GroupFormat) -> str:
    return f"group.{group.first}.codec"


def basis_name(group: GroupFormat, kind: str) -> str:
    return f"group.{group.first}.basis_{kind}"

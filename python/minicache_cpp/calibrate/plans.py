"""Plans made of choices: which groups are coded with which layouts, and which layers are plain in which types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import GroupFormat, Layout
from ..cache.plan import PlainLayer, Plan
from ..cache.plan_file import write_plan
from ..modelfile.ggml_types import CACHE_TYPES, GGML_TYPES
from ..modelfile.shape import ModelShape
from .allocation import Choice
from .group_fit import GroupFit, fits_side_by_side
from .grouping import cut_into_groups
from .rope import Rope

# the type of the window; heads that cannot have it get f16
POOL_TYPE = "q8_0"
# the type of sliding-window layers, which do not grow with the context, in a plan with codes
WINDOW_LAYERS_TYPE = "q8_0"


@dataclass(frozen=True)
class PlanBuilder:
    """Builds plans for one model. It measures nothing."""

    shape: ModelShape
    # a plan without groups, with the window and RoPE block that plans with groups get
    template: Plan
    # how RoPE turns each layer's K: layers that differ in it share no code
    ropes: Sequence[Rope | None]
    # whether the window is kept as f16, where the pool's type would lose too much of it
    exact_window: bool = False

    def types(self) -> list[str]:
        """The cache types that all heads of this model can have."""
        return [name for name in CACHE_TYPES if self.shape.divides_into(GGML_TYPES[name].block)]

    def plain(self, name: str) -> Plan:
        """The plan that keeps all layers in one cache type."""
        return replace(self.template, rope_block=0, type_k=name, type_v=name, pool_type="f16", window=0)

    def plain_growing(self, name: str) -> Plan:
        """The same, but for sliding-window layers, which have their type in plans with codes too."""
        common = self._beside()
        if common is None or common == name:
            return self.plain(name)
        growing = [number for number, layer in enumerate(self.shape.layers) if layer.grows]
        return replace(self.plain(common), plain=tuple(PlainLayer(number, name, name) for number in growing))

    def _beside(self) -> str | None:
        """The type of sliding-window layers in a plan with codes; None without such layers."""
        if not any(layer.kind == "window" for layer in self.shape.layers):
            return None
        return WINDOW_LAYERS_TYPE if WINDOW_LAYERS_TYPE in self.types() else "f16"

    def of(self, fits: Sequence[GroupFit], choices: Sequence[Choice]) -> Plan:
        """The plan of one choice for each group."""
        groups = [
            fit.format(choice.k, choice.v)
            for fit, choice in zip(fits, choices, strict=True)
            if choice.k is not None and choice.v is not None
        ]
        types = {
            layer: names
            for fit, choice in zip(fits, choices, strict=True)
            if choice.types
            for layer, names in zip(fit.layers, choice.types, strict=True)
        }
        beside = self._beside()
        common = [
            beside
            or (Counter(names[side] for names in types.values()).most_common(1)[0][0] if types else "f16")
            for side in (0, 1)
        ]
        return replace(
            self.template,
            rope_block=self.template.rope_block if groups else 0,
            type_k=common[0],
            type_v=common[1],
            plain=tuple(
                PlainLayer(layer, *types[layer]) for layer in sorted(types) if list(types[layer]) != common
            ),
            groups=tuple(groups),
            pool_type=self._pool_type() if groups else "f16",
            window=self.template.window if groups else 0,
        )

    def uniform(self, layout: Layout, most: int) -> Plan:
        """The plan that codes all heads of all layers with one layout, in groups of at most `most`."""
        groups = []
        for layers in cut_into_groups(self.shape, self.ropes, most):
            one = self.shape.layers[layers[0]]
            layouts = (layout,) * one.n_head_kv
            groups.append(
                GroupFormat(layers, one.n_head_kv, one.head_size_k, one.head_size_v, layouts, layouts)
            )
        beside = self._beside() or self.template.type_k
        return replace(
            self.template, groups=tuple(groups), pool_type=self._pool_type(), type_k=beside, type_v=beside
        )

    def _pool_type(self) -> str:
        """The type of the window in a plan that has groups."""
        smaller = self.template.window and POOL_TYPE in self.types() and not self.exact_window
        return POOL_TYPE if smaller else "f16"


def write_fitted(path: Path, plan: Plan, fits: Sequence[GroupFit], threads: int = 1) -> None:
    """Writes a plan with the codecs of its groups, which are made of the fits of the same layers."""
    by_layers = {fit.layers: fit for fit in fits}

    def codec(group: GroupFormat) -> NDArray[np.int8]:
        return by_layers[group.layers].codec(group.layouts_k, group.layouts_v)

    codecs = fits_side_by_side(codec, plan.groups, threads)
    write_plan(path, plan, {group.first: one for group, one in zip(plan.groups, codecs, strict=True)})

"""What a context's KV cache takes, in numbers: KVReport."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..host.units import mib

NO_SHIFT = "positions can't be shifted: RoPE turns each layer's K in another plane of the bases"


@dataclass(frozen=True)
class LayerReport:
    """One layer's part of the cache."""

    kind: str  # "none", "plain", "merged" or "refused"
    group: tuple[int, ...] | None  # the layers that it shares storage with, or was to, itself among them
    side: int | None  # its number in the group
    bytes: int  # a merged layer's are its share of its group's
    type_k: (
        str | None
    )  # of its K, or of its group's directions; None for codes, and where the layer keeps none
    type_v: str | None
    # mean Ω/π of the group's merged tokens, or, of a code, squared error over squared length; None before the first
    distance_k: float | None
    distance_v: float | None
    n_merged: int
    reason: str  # why it was refused

    @property
    def distance(self) -> float | None:
        if self.distance_k is None or self.distance_v is None:
            return None
        return (self.distance_k + self.distance_v) / 2


@dataclass(frozen=True)
class KVReport:
    """The KV cache of a context, as it is allocated, beside what plain caches of the same context would take.

    ratio: f16 bytes per cached token over ours, directions, magnitudes, retained tokens and index included.
    total_ratio: the same of all allocated bytes at this context, `fixed_bytes` included.
    """

    bytes: int
    fixed_bytes: int  # allocated once, whatever the context: codecs or bases, the window, and alignment
    bytes_f16: int
    bytes_plain: int  # a plain cache of the same K and V types, unmerged layers with their own
    bytes_directions: int  # directions or codes
    bytes_magnitudes: int
    bytes_pool: int  # retained tokens
    bytes_window: int  # the latest tokens, which stay unmerged, and the index of them
    bytes_index: int
    bytes_codec: int  # what codes are made and read with, or bases
    bytes_unmerged: int  # layers that are not merged
    ratio: float
    total_ratio: float
    active: bool  # some layers are merged
    mode: (
        str | None
    )  # how: "slerp" (one direction), "aligned" (in a plan's bases), "average", or "code" (a plan's)
    rope_block: int | None  # coded K is relative to the last multiple of this position
    can_shift: bool  # positions can be moved: a chat that outgrows its context can drop its oldest turns
    n_cells: int  # per stream
    n_stream: int
    type_k: str  # a plan may give unmerged layers others: see `layers`
    type_v: str
    pool_type: str | None
    t: float | None
    retain: float | None  # as granted, one token in a whole number
    retained: int  # retained tokens held now, over all groups and streams
    retained_max: int
    window: int  # tokens of each stream, the latest, that stay unmerged
    groups: list[tuple[int, ...]]  # of layers that share storage
    pairs: list[tuple[int, int]]  # neighbours in them: (0, 1), (1, 2) of a group of three
    layers: list[LayerReport]
    note: str  # why no layer is merged where that was asked for
    fallback: str  # which ops of which device run on the CPU in place of it, "" for none

    @property
    def distance(self) -> float | None:
        """The mean distance over the groups that have merged something."""
        distances = [self.layers[group[0]].distance for group in self.groups]
        known = [distance for distance in distances if distance is not None]
        return sum(known) / len(known) if known else None

    def _how(self) -> str:
        if self.mode == "average":
            return "averaged"
        if self.mode == "aligned":
            return f"t {self.t:g}, in the plan's bases"
        if self.mode == "slerp":
            return f"t {self.t:g}"
        return f"codes, K relative to blocks of {self.rope_block}" if self.rope_block else "codes"

    def _other_types(self) -> str:
        """The unmerged layers that have not the cache's types, by their types."""
        found: dict[str, list[str]] = {}
        for number, layer in enumerate(self.layers):
            if layer.kind in ("plain", "refused") and layer.type_k and layer.type_v:
                found.setdefault(types_name(layer.type_k, layer.type_v), []).append(str(number))
        found.pop(types_name(self.type_k, self.type_v), None)
        return ", ".join(f"{name} in {', '.join(numbers)}" for name, numbers in found.items())

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(asdict(self), indent=indent)

    def __str__(self) -> str:
        streams = f" x {self.n_stream} streams" if self.n_stream > 1 else ""
        lines = [f"KV cache of {self.n_cells} cells{streams}, K {self.type_k}, V {self.type_v}"]
        if self.active:
            groups = ", ".join(map(group_name, self.groups))
            exact = f", the last {self.window} tokens unmerged" if self.window else ""
            lines.append(f"merged layers {groups}; {self._how()}, {_retained(self.retain)}{exact}")
            if self.mode == "aligned" and not self.can_shift:
                lines.append(NO_SHIFT)
        elif self.note:
            lines.append(f"no layer is merged: {self.note}")
        others = self._other_types()
        if others:
            lines.append(f"unmerged layers with other types: {others}")
        if self.fallback:
            lines.append(f"{self.fallback}: layers attend on the CPU")
        rows = [("taken", mib(self.bytes), "")]
        if self.active:
            fixed = "bases" if self.mode == "aligned" else "codecs"
            rows += [
                ("  codes" if self.mode == "code" else "  directions", mib(self.bytes_directions), ""),
                ("  magnitudes", mib(self.bytes_magnitudes), ""),
                (
                    "  retained tokens",
                    mib(self.bytes_pool),
                    f"{self.retained} of {self.retained_max} slots in use",
                ),
                ("  index", mib(self.bytes_index), ""),
                *(
                    [("  window", mib(self.bytes_window), "whatever the context")]
                    if self.bytes_window
                    else []
                ),
                *(
                    [(f"  {fixed}", mib(self.bytes_codec), "whatever the context")]
                    if self.bytes_codec
                    else []
                ),
                ("  unmerged layers", mib(self.bytes_unmerged), ""),
            ]
        rows.append(
            ("as plain f16", mib(self.bytes_f16), f"ratio {self.ratio:.2f}, total {self.total_ratio:.2f}")
        )
        if self.bytes_plain != self.bytes_f16:
            same = "as plain, own types" if others else f"as plain {types_name(self.type_k, self.type_v)}"
            rows.append((same, mib(self.bytes_plain), f"{self.bytes_plain / self.bytes:.2f} times ours"))
        lines += [f"{name:<20}{size:>14}   {more}".rstrip() for name, size, more in rows]
        if self.active and self.distance is not None:
            coded = "mean squared error, relative to the squared length"
            directions = "mean distance (0: the same direction, 0.5: unrelated)"
            lines.append(coded if self.mode == "code" else directions)
            for group in self.groups:
                layer = self.layers[group[0]]
                if layer.distance is not None:
                    lines.append(
                        f"  layers {group_name(group)}:  K {layer.distance_k:.3f}  V {layer.distance_v:.3f}"
                    )
        refused = [(i, layer.reason) for i, layer in enumerate(self.layers) if layer.kind == "refused"]
        lines += [f"layer {i} is not merged: {reason}" for i, reason in refused]
        return "\n".join(lines)


def types_name(type_k: str, type_v: str) -> str:
    """Of K and V, as tables name them."""
    return type_k if type_k == type_v else f"{type_k}/{type_v}"


def group_name(layers: Sequence[int]) -> str:
    """Of layers that share storage, as tables name them."""
    return "+".join(map(str, layers))


def _retained(retain: float | None) -> str:
    return f"one token in {round(1 / retain)} retained" if retain else "no token retained"

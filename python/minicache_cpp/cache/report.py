"""What a context's KV cache takes and how it is kept, in numbers and as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..host.units import mib

GROWING = ("plain", "merged", "refused")  # the kinds of layers whose cache grows with the context
NO_SHIFT = "positions cannot be shifted, because the basis matrices are applied after RoPE"


@dataclass(frozen=True)
class LayerReport:
    """One layer's part of the cache."""

    # "plain", "merged" or "refused", whose cache grows with the context; "window", of a sliding-window layer; "state",
    # of a recurrent one; or "none"
    kind: str
    # the layers of its group, including itself; of a refused layer, the group it was meant for
    group: tuple[int, ...] | None
    # its number in the group
    side: int | None
    # of a merged layer, its share of the group's bytes
    bytes: int
    # the types of the layer's rows, or of its group's directions; None for codes, and where the layer keeps nothing
    type_k: str | None
    type_v: str | None
    # mean Ω/π of the merged tokens, or for codes the squared error over the squared length; None before the first token
    distance_k: float | None
    distance_v: float | None
    n_merged: int
    # why the layer was refused
    reason: str

    @property
    def distance(self) -> float | None:
        if self.distance_k is None or self.distance_v is None:
            return None
        return (self.distance_k + self.distance_v) / 2


@dataclass(frozen=True)
class KVReport:
    """The KV cache of a context as it is allocated, beside what plain caches of the same context would take.

    The names of the bytes mean what they mean in struct llama_minicache_report.

    ratio: f16 bytes per cached token over ours, of what grows with the context: with directions, magnitudes, retained
        tokens and index.
    total_ratio: the same for all allocated bytes at this context, `fixed_bytes` included.
    """

    bytes: int
    # to which no cached token adds: codecs or basis matrices, windows, states, and alignment
    fixed_bytes: int
    bytes_f16: int
    # a plain cache of the same K and V types, in which unmerged layers keep their own
    bytes_plain: int
    # directions or codes
    bytes_directions: int
    bytes_magnitudes: int
    # retained tokens
    bytes_pool: int
    # the first and the latest tokens, which stay unmerged, and their index
    bytes_window: int
    bytes_index: int
    # what codes are made and read with, or basis matrices
    bytes_codec: int
    # layers that are not merged, and whose cache grows with the context
    bytes_unmerged: int
    # sliding-window layers and recurrent states, which llama.cpp keeps
    bytes_swa: int
    bytes_state: int
    ratio: float
    total_ratio: float
    # whether any layers are merged
    active: bool
    # "slerp" (one direction), "average", or a plan's "aligned" (SLERP after a change of basis) or "code"
    mode: str | None
    # K is coded relative to the last multiple of this position; 0: as it is
    rope_block: int | None
    # whether positions can be moved, so that a chat that outgrows its context can drop its oldest turns
    can_shift: bool
    # cells of each stream
    n_cells: int
    # of sliding-window layers, 0 without such layers
    n_cells_swa: int
    n_stream: int
    # a plan may give unmerged layers other types: see `layers`
    type_k: str
    type_v: str
    pool_type: str | None
    t: float | None
    # the actual fraction, 1/n for a whole number n
    retain: float | None
    # retained tokens held now, over all groups and streams
    retained: int
    retained_max: int
    # how many of the first and the latest tokens of each stream stay unmerged
    window: int
    # the layers that share storage
    groups: list[tuple[int, ...]]
    # neighbours in the groups: (0, 1) and (1, 2) of a group of three
    pairs: list[tuple[int, int]]
    layers: list[LayerReport]
    # why no layer is merged where that was asked for
    note: str
    # which ops a device lacks, so that they run on the CPU; "" for none
    fallback: str

    @property
    def distance(self) -> float | None:
        """The mean distance over the groups that have merged something."""
        distances = [self.layers[group[0]].distance for group in self.groups]
        known = [distance for distance in distances if distance is not None]
        return sum(known) / len(known) if known else None

    def to_json(self, indent: int | None = None) -> str:
        return json.dumps(asdict(self), indent=indent)

    def __str__(self) -> str:
        streams = f" x {self.n_stream} streams" if self.n_stream > 1 else ""
        lines = [f"KV cache of {self.n_cells} cells{streams}, K {self.type_k}, V {self.type_v}"]
        lines += [*_kept(self), *_sizes(self)]
        if self.active and self.distance is not None:
            lines += _distances(self)
        refused = [
            (number, layer.reason) for number, layer in enumerate(self.layers) if layer.kind == "refused"
        ]
        return "\n".join([*lines, *(f"layer {number} is not merged: {reason}" for number, reason in refused)])


def held_tokens(window: int) -> str:
    """Which tokens of a stream a window of so many holds."""
    # late, because it loads the native library, which `import minicache_cpp` does not
    from .native_settings import window_first

    first = window_first(window)
    latest = f"the latest {window - first} tokens"
    return f"the first {first} and {latest}" if first else latest


def types_name(type_k: str, type_v: str) -> str:
    """The types of K and V, as tables name them."""
    return type_k if type_k == type_v else f"{type_k}/{type_v}"


def group_name(layers: Sequence[int]) -> str:
    """Layers that share storage, as tables name them."""
    return "+".join(map(str, layers))


def _kept(report: KVReport) -> list[str]:
    """Which layers are merged and how, and what is unusual about the others."""
    lines = []
    if report.active:
        groups = ", ".join(map(group_name, report.groups))
        retained = (
            f"one token in {round(1 / report.retain)} retained" if report.retain else "no token retained"
        )
        exact = f", {held_tokens(report.window)} unmerged" if report.window else ""
        lines.append(f"merged layers {groups}; {_mode(report)}, {retained}{exact}")
        if report.mode == "aligned" and not report.can_shift:
            lines.append(NO_SHIFT)
    elif report.note:
        lines.append(f"no layer is merged: {report.note}")
    if others := _other_types(report):
        lines.append(f"unmerged layers with other types: {others}")
    if report.fallback:
        lines.append(f"{report.fallback}: attention of these layers runs on the CPU")
    return lines


def _mode(report: KVReport) -> str:
    if report.mode == "average":
        return "averaged"
    if report.mode == "aligned":
        return f"t {report.t:g}, in the plan's basis"
    if report.mode == "slerp":
        return f"t {report.t:g}"
    return f"codes, K relative to blocks of {report.rope_block}" if report.rope_block else "codes"


def _other_types(report: KVReport) -> str:
    """The unmerged layers whose types are not the cache's, by their types."""
    found: dict[str, list[str]] = {}
    for number, layer in enumerate(report.layers):
        if layer.kind in ("plain", "refused") and layer.type_k and layer.type_v:
            found.setdefault(types_name(layer.type_k, layer.type_v), []).append(str(number))
    found.pop(types_name(report.type_k, report.type_v), None)
    return ", ".join(f"{name} in {', '.join(numbers)}" for name, numbers in found.items())


def _sizes(report: KVReport) -> list[str]:
    """The table of bytes."""
    rows = [("taken", mib(report.bytes), "")]
    if report.active:
        coded, aligned = report.mode == "code", report.mode == "aligned"
        in_use = f"{report.retained} of {report.retained_max} slots in use"
        rows += [
            ("  codes" if coded else "  directions", mib(report.bytes_directions), ""),
            ("  magnitudes", mib(report.bytes_magnitudes), ""),
            ("  retained tokens", mib(report.bytes_pool), in_use),
            ("  index", mib(report.bytes_index), ""),
        ]
        if report.bytes_window:
            rows.append(("  window", mib(report.bytes_window), f"{report.window} tokens of each stream"))
        if report.bytes_codec:
            name = "  basis matrices" if aligned else "  codecs"
            rows.append((name, mib(report.bytes_codec), "whatever the context"))
        rows.append(("  unmerged layers", mib(report.bytes_unmerged), ""))
    rows += _beside(report)
    ratios = f"ratio {report.ratio:.2f}, total {report.total_ratio:.2f}"
    rows.append(("as plain f16", mib(report.bytes_f16), ratios))
    if report.bytes_plain != report.bytes_f16:
        name = f"as plain {types_name(report.type_k, report.type_v)}"
        name = "as plain, own types" if _other_types(report) else name
        rows.append((name, mib(report.bytes_plain), f"{report.bytes_plain / report.bytes:.2f} times ours"))
    return [f"{name:<20}{size:>14}   {more}".rstrip() for name, size, more in rows]


def _beside(report: KVReport) -> list[tuple[str, str, str]]:
    """The rows of what llama.cpp keeps beside a cache that grows, and of what grows."""
    rows = []
    # with llama.cpp's swa_full they are as long as the context
    once = ", whatever the context" if report.n_cells_swa < report.n_cells else ""
    if report.bytes_swa:
        rows.append(("  sliding windows", mib(report.bytes_swa), f"{report.n_cells_swa} cells{once}"))
    if report.bytes_state:
        rows.append(("  recurrent states", mib(report.bytes_state), "whatever the context"))
    if rows and report.n_cells:
        layers = sum(layer.kind in GROWING for layer in report.layers)
        grows = report.bytes - report.fixed_bytes
        each = grows / (report.n_cells * report.n_stream)
        rows.append(
            ("  grows", mib(grows), f"{layers} of {len(report.layers)} layers, {each:,.0f} bytes a token")
        )
    return rows


def _distances(report: KVReport) -> list[str]:
    """How well the groups can be merged."""
    coded = "mean squared error, relative to the squared length"
    directions = "mean distance (0: the same direction, 0.5: unrelated)"
    lines = [coded if report.mode == "code" else directions]
    for group in report.groups:
        layer = report.layers[group[0]]
        if layer.distance is not None:
            lines.append(f"  layers {group_name(group)}:  K {layer.distance_k:.3f}  V {layer.distance_v:.3f}")
    return lines

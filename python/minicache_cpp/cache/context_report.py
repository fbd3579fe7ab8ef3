"""Reads the report of a context from the native library."""

from __future__ import annotations

import itertools
import math
from typing import Any

from ..modelfile.ggml_types import BY_NUMBER
from ..native import binding
from .native_settings import MODES
from .report import KVReport, LayerReport


def read_report(ctx: Any) -> KVReport:
    """The report of a llama_context (as llama_cpp gives its pointer)."""
    ffi, lib = binding.ffi, binding.lib
    pointer = binding.context_pointer(ctx)
    raw = ffi.new("struct llama_minicache_report *")
    binding.check(lib.llama_minicache_get_report(pointer, raw), "llama_minicache_get_report")

    kinds = ("none", "plain", "merged", "refused")
    layers = []
    for number in range(raw.n_layer):
        layer = ffi.new("struct llama_minicache_layer_report *")
        binding.check(
            lib.llama_minicache_get_layer_report(pointer, number, layer), "llama_minicache_get_layer_report"
        )
        layers.append(
            LayerReport(
                kind=kinds[layer.kind],
                group=tuple(one for one in layer.group if one >= 0) or None,
                side=layer.side if layer.side >= 0 else None,
                bytes=layer.bytes,
                type_k=_type_name(layer.type_k),
                type_v=_type_name(layer.type_v),
                distance_k=None if math.isnan(layer.distance_k) else layer.distance_k,
                distance_v=None if math.isnan(layer.distance_v) else layer.distance_v,
                n_merged=layer.n_merged,
                reason=binding.text(layer.reason),
            )
        )
    groups = [one.group for one in layers if one.kind == "merged" and one.side == 0 and one.group]
    type_k, type_v = BY_NUMBER[raw.type_k].name, BY_NUMBER[raw.type_v].name
    pool = None
    if raw.retain_block or raw.window:
        pool = BY_NUMBER[raw.pool_type].name if raw.pool_type in BY_NUMBER else "cache"
    mode = MODES[raw.mode] if raw.active else None
    fixed = raw.bytes_padding + raw.bytes_codec + raw.bytes_window
    return KVReport(
        bytes=raw.bytes,
        fixed_bytes=fixed,
        bytes_f16=raw.bytes_f16,
        bytes_plain=raw.bytes_plain,
        bytes_directions=raw.bytes_directions,
        bytes_magnitudes=raw.bytes_magnitudes,
        bytes_pool=raw.bytes_pool,
        bytes_window=raw.bytes_window,
        bytes_index=raw.bytes_index,
        bytes_codec=raw.bytes_codec,
        bytes_unmerged=raw.bytes_unmerged,
        ratio=_ratio(raw.bytes_f16, raw.bytes - fixed),
        total_ratio=_ratio(raw.bytes_f16, raw.bytes),
        active=raw.active,
        mode=mode,
        rope_block=raw.rope_block if mode == "code" else None,
        can_shift=raw.can_shift,
        n_cells=raw.n_cells,
        n_stream=raw.n_stream,
        type_k=type_k,
        type_v=type_v,
        pool_type=pool,
        t=raw.t if mode in ("slerp", "aligned") else None,
        retain=raw.retain if raw.active else None,
        retained=raw.n_retained,
        retained_max=raw.n_retained_max,
        window=raw.window,
        groups=groups,
        pairs=[pair for group in groups for pair in itertools.pairwise(group)],
        layers=layers,
        note=binding.text(raw.note),
        fallback=binding.text(raw.fallback),
    )


def _type_name(number: int) -> str | None:
    return BY_NUMBER[number].name if number in BY_NUMBER else None


def _ratio(baseline: int, ours: int) -> float:
    return baseline / ours if ours else 1.0

"""Reads the report of a context from the native library."""

from __future__ import annotations

import itertools
import math
from typing import Any

from ..modelfile.ggml_types import BY_NUMBER
from ..native import binding
from .native_settings import MODES
from .report import KVReport, LayerReport

KINDS = ("none", "plain", "merged", "refused", "window", "state")  # enum llama_minicache_layer_kind


def read_report(ctx: Any) -> KVReport:
    """The report of a llama_context, of which llama_cpp gives the pointer. Raises MiniCacheError where it has none."""
    raw = binding.ffi.new("struct llama_minicache_report *")
    done = binding.lib.llama_minicache_get_report(binding.context_pointer(ctx), raw)
    binding.check(done, "llama_minicache_get_report")
    layers = [_layer(ctx, number) for number in range(raw.n_layer)]
    groups = [one.group for one in layers if one.kind == "merged" and one.side == 0 and one.group]
    mode = MODES[raw.mode] if raw.active else None
    beside = raw.bytes_swa + raw.bytes_state
    fixed_bytes = raw.bytes_padding + raw.bytes_codec + raw.bytes_window + beside
    return KVReport(
        bytes=raw.bytes,
        fixed_bytes=fixed_bytes,
        bytes_f16=raw.bytes_f16,
        bytes_plain=raw.bytes_plain,
        bytes_directions=raw.bytes_directions,
        bytes_magnitudes=raw.bytes_magnitudes,
        bytes_pool=raw.bytes_pool,
        bytes_window=raw.bytes_window,
        bytes_index=raw.bytes_index,
        bytes_codec=raw.bytes_codec,
        bytes_unmerged=raw.bytes_unmerged,
        bytes_swa=raw.bytes_swa,
        bytes_state=raw.bytes_state,
        ratio=_ratio(raw.bytes_f16 - raw.bytes_f16_fixed, raw.bytes - fixed_bytes),
        total_ratio=_ratio(raw.bytes_f16, raw.bytes),
        active=raw.active,
        mode=mode,
        rope_block=raw.rope_block if mode == "code" else None,
        can_shift=raw.can_shift,
        n_cells=raw.n_cells,
        n_cells_swa=raw.n_cells_swa,
        n_stream=raw.n_stream,
        type_k=_type_name(raw.type_k) or "none",
        type_v=_type_name(raw.type_v) or "none",
        pool_type=(_type_name(raw.pool_type) or "cache") if raw.retain_block or raw.window else None,
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


def _layer(ctx: Any, number: int) -> LayerReport:
    raw = binding.ffi.new("struct llama_minicache_layer_report *")
    done = binding.lib.llama_minicache_get_layer_report(binding.context_pointer(ctx), number, raw)
    binding.check(done, "llama_minicache_get_layer_report")
    return LayerReport(
        kind=KINDS[raw.kind],
        group=tuple(one for one in raw.group if one >= 0) or None,
        side=raw.side if raw.side >= 0 else None,
        bytes=raw.bytes,
        type_k=_type_name(raw.type_k),
        type_v=_type_name(raw.type_v),
        distance_k=None if math.isnan(raw.distance_k) else raw.distance_k,
        distance_v=None if math.isnan(raw.distance_v) else raw.distance_v,
        n_merged=raw.n_merged,
        reason=binding.text(raw.reason),
    )


def _type_name(number: int) -> str | None:
    return BY_NUMBER[number].name if number in BY_NUMBER else None


def _ratio(baseline: int, ours: int) -> float:
    return baseline / ours if ours else 1.0

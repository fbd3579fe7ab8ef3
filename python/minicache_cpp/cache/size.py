"""What the KV cache of a model takes at a context, from the model file's header alone.

The same sums as the native cache's, which `Llama.kv_report()` tells of a context that exists; a test compares
them.
"""

from __future__ import annotations

from ..errors import MiniCacheError
from ..modelfile.ggml_types import GGML_TYPES, GGMLType
from ..modelfile.shape import Layer, ModelShape
from .plan_file import Plan, read_plan
from .settings import CacheSpec, MiniCache, retain_block

CELL_STEP = 256  # llama.cpp rounds a context up to whole steps
ALIGNMENT = 32  # of tensors in a buffer
SLOT_BYTES = 8  # the cell and the distance of a retained token, or of one in the window
SLOT_EXTRA = 2  # running means, in the same array
MAGNITUDES = 4  # |K_a|, |K_b|, |V_a|, |V_b| per token and KV head, in f16, of layers merged by SLERP


def n_cells(n_ctx: int) -> int:
    """The cells llama.cpp allocates for a context."""
    return -(-n_ctx // CELL_STEP) * CELL_STEP


def merged_groups(shape: ModelShape, minicache: MiniCache) -> list[tuple[int, ...]]:
    """The groups of layers that MiniCache merges in this model; explicit ones must name its layers."""
    n_layer = len(shape.layers)
    if minicache.groups is not None:
        groups = list(minicache.groups)
        deepest = max((group[-1] for group in groups), default=0)
        if deepest >= n_layer:
            raise MiniCacheError(f"pairs name layer {deepest}; the model's layers are 0 to {n_layer - 1}")
    else:
        start = minicache.start
        if isinstance(start, int) and start >= n_layer:
            raise MiniCacheError(
                f"start={start} is no layer of this model; its layers are 0 to {n_layer - 1}"
            )
        first = start if isinstance(start, int) else int(start * n_layer)
        groups = [(layer, layer + 1) for layer in range(first, n_layer - 1, 2)]
    if shape.window:
        return []
    alike = [len({shape.layers[layer] for layer in group}) == 1 for group in groups]
    return [
        group for group, same in zip(groups, alike, strict=True) if same and shape.layers[group[0]].n_head_kv
    ]


def kv_bytes(shape: ModelShape, spec: CacheSpec, n_ctx: int, n_stream: int = 1) -> int:
    """Bytes of the cache of one sequence of `n_ctx` tokens, or of several that have a stream each (or less by some
    bytes of alignment of each).
    """
    cells = n_cells(n_ctx)
    if n_stream > 1:
        plan = read_plan(spec.minicache.plan) if spec.minicache and spec.minicache.plan is not None else None
        once = _codec_bytes(shape, plan) if plan else 0
        return once + n_stream * (kv_bytes(shape, spec, n_ctx) - once)
    type_k, type_v = GGML_TYPES[spec.type_k], GGML_TYPES[spec.type_v]
    plan = read_plan(spec.minicache.plan) if spec.minicache and spec.minicache.plan is not None else None
    own = {one.layer: one.types for one in plan.plain} if plan else {}
    for number, layer in enumerate(shape.layers):
        _check_types(layer, *own.get(number, (spec.type_k, spec.type_v)))
    if plan is not None:
        return plan_bytes(shape, plan, n_ctx)
    if spec.minicache is None:
        return _plain_bytes(shape, type_k, type_v, cells, set())
    groups = merged_groups(shape, spec.minicache)
    total = _plain_bytes(shape, type_k, type_v, cells, {layer for group in groups for layer in group})
    for group in groups:
        layer = shape.layers[group[0]]
        total += _rows(type_k, layer.n_k, cells) + _rows(type_v, layer.n_v, cells)
        if spec.minicache.mode == "slerp":
            total += _rows(GGML_TYPES["f16"], MAGNITUDES * layer.n_head_kv, cells)
        total += _unmerged_bytes(
            layer,
            len(group),
            spec,
            spec.minicache.pool_type,
            spec.minicache.window + n_slots(spec.minicache.retain_block, cells),
        )
    return total


def n_sequences(shape: ModelShape, spec: CacheSpec, n_ctx: int, budget: int) -> int:
    """The sequences of `n_ctx` tokens that fit so many bytes, a stream each."""
    one, two = (kv_bytes(shape, spec, n_ctx, n) for n in (1, 2))
    return 1 + (budget - one) // (two - one) if one <= budget else 0


def _check_types(layer: Layer, type_k: str, type_v: str) -> None:
    for name, size in ((type_k, layer.head_size_k), (type_v, layer.head_size_v)):
        if layer.n_head_kv and size % GGML_TYPES[name].block:
            raise MiniCacheError(f"{name} needs heads of a multiple of {GGML_TYPES[name].block} numbers")


def plan_bytes(shape: ModelShape, plan: Plan, n_ctx: int) -> int:
    """Bytes of the cache that a plan describes, codecs or bases included."""
    cells = n_cells(n_ctx)
    spec, plain = CacheSpec(plan.type_k, plan.type_v), plan.plain_types()
    total = sum(
        _layer_bytes(layer, GGML_TYPES[plain[number][0]], GGML_TYPES[plain[number][1]], cells)
        for number, layer in enumerate(shape.layers)
        if number in plain
    )
    for group in plan.groups:
        layer = shape.layers[group.first]
        if plan.mode == "aligned":
            total += _rows(GGML_TYPES[plan.type_k], layer.n_k, cells)
            total += _rows(GGML_TYPES[plan.type_v], layer.n_v, cells)
            total += _rows(GGML_TYPES["f16"], MAGNITUDES * layer.n_head_kv, cells)
        else:
            for layout in (group.layout_k, group.layout_v):
                total += _aligned(layout.row_bytes(group.n_layer) * group.n_head_kv * cells)
        n_rows = plan.window + n_slots(retain_block(plan.retain), cells)
        total += _unmerged_bytes(layer, group.n_layer, spec, plan.pool_type, n_rows)
    return total + _codec_bytes(shape, plan)


def plan_fixed_bytes(shape: ModelShape, plan: Plan) -> int:
    """What a plan's cache allocates once, whatever the context: the codecs, or the bases, and the window."""
    return _codec_bytes(shape, plan) + plan_window_bytes(shape, plan)


def plan_window_bytes(shape: ModelShape, plan: Plan) -> int:
    """The tokens of the window, of all groups, and the index of them."""
    pool_k, pool_v = _pool_types(CacheSpec(plan.type_k, plan.type_v), plan.pool_type)
    rows = [
        n * (pool_k.row_bytes(layer.n_k) + pool_v.row_bytes(layer.n_v)) + SLOT_BYTES
        for layer, n in ((shape.layers[group.first], group.n_layer) for group in plan.groups)
    ]
    return plan.window * sum(rows)


def _codec_bytes(shape: ModelShape, plan: Plan) -> int:
    if plan.mode == "aligned":
        return sum(group.basis_bytes for group in plan.groups)  # head sizes are multiples of the alignment
    return sum(_aligned(group.codec_bytes(shape.n_rot)) for group in plan.groups)


def _plain_bytes(
    shape: ModelShape, type_k: GGMLType, type_v: GGMLType, cells: int, left_out: set[int]
) -> int:
    return sum(
        _layer_bytes(layer, type_k, type_v, cells)
        for number, layer in enumerate(shape.layers)
        if number not in left_out
    )


def _layer_bytes(layer: Layer, type_k: GGMLType, type_v: GGMLType, cells: int) -> int:
    return _rows(type_k, layer.n_k, cells) + _rows(type_v, layer.n_v, cells)


def n_slots(block: int, cells: int) -> int:
    """A group's retained tokens."""
    return -(-cells // block) if block else 0


def _unmerged_bytes(layer: Layer, n_layer: int, spec: CacheSpec, pool_type: str, n: int) -> int:
    """The tokens that a group of such layers keeps as they are, in the window or retained, and the index of them."""
    pool_k, pool_v = _pool_types(spec, pool_type)
    rows = _rows(pool_k, layer.n_k, n_layer * n) + _rows(pool_v, layer.n_v, n_layer * n)
    return rows + _aligned(SLOT_BYTES * (n + SLOT_EXTRA))


def _pool_types(spec: CacheSpec, pool_type: str) -> tuple[GGMLType, GGMLType]:
    """Of K and of V."""
    types = (spec.type_k, spec.type_v) if pool_type == "cache" else (pool_type, pool_type)
    return GGML_TYPES[types[0]], GGML_TYPES[types[1]]


def _rows(ggml_type: GGMLType, n: int, n_rows: int) -> int:
    return _aligned(ggml_type.row_bytes(n) * n_rows)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT

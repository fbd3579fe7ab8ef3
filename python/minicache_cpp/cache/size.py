"""The bytes of a model's KV cache at a context, from the header of the model file alone.

The sums are those of the native cache, which `Llama.kv_report()` reports of an existing context; a test compares both.
"""

from __future__ import annotations

from ..errors import MiniCacheError
from ..modelfile.ggml_types import GGML_TYPES, GGMLType
from ..modelfile.shape import Layer, ModelShape
from .code_format import GroupFormat, token_row_bytes
from .plan import Plan
from .settings import CacheSpec, MiniCache

CELL_STEP = 256  # llama.cpp rounds a context, and a sliding window, up to whole steps
# tokens of a ubatch, for which a sliding window has room beside it, unless a context says otherwise
UBATCH = 512
# a context in which windows have grown as far as they do
LONG = 2**20
ALIGNMENT = 32  # of the tensors in a buffer
SLOT_BYTES = 8  # the cell and the distance of a retained token, or of a token in the window
SLOT_EXTRA = 2  # running means, in the same array
MAGNITUDES = 4  # |K_a|, |K_b|, |V_a|, |V_b| per token and KV head, in f16, of layers merged by SLERP


def n_cells(n_ctx: int) -> int:
    """The cells llama.cpp allocates for a context."""
    return -(-n_ctx // CELL_STEP) * CELL_STEP


def merged_groups(shape: ModelShape, minicache: MiniCache) -> list[tuple[int, ...]]:
    """The groups of layers that MiniCache merges in this model; explicit ones must name its layers.

    Without explicit ones they are pairs of neighbours among the layers whose cache grows with the context.
    """
    n_layer = len(shape.layers)
    if minicache.mode == "plain":
        return []
    if minicache.groups is not None:
        groups = list(minicache.groups)
        deepest = max((group[-1] for group in groups), default=0)
        if deepest >= n_layer:
            raise MiniCacheError(f"pairs name layer {deepest}; the model's layers are 0 to {n_layer - 1}")
    else:
        start = minicache.start
        if isinstance(start, int) and start >= n_layer:
            raise MiniCacheError(
                f"start={start} is not a layer of this model; its layers are 0 to {n_layer - 1}"
            )
        first = minicache.start_layer(n_layer)
        # a layer without KV heads counts when layers are paired, but its pair is not merged
        growing = [number for number in range(first, n_layer) if shape.layers[number].kind == "grows"]
        groups = list(zip(growing[::2], growing[1::2], strict=False))
    alike = [len({shape.layers[layer] for layer in group}) == 1 for group in groups]
    return [group for group, same in zip(groups, alike, strict=True) if same and shape.layers[group[0]].grows]


def kv_bytes(
    shape: ModelShape, spec: CacheSpec, n_ctx: int, n_stream: int = 1, n_ubatch: int = UBATCH
) -> int:
    """The bytes of the cache of one sequence of `n_ctx` tokens, or of several that have a stream each.

    The windows of sliding-window layers count, for ubatches of `n_ubatch` tokens, and so do recurrent states. With
    several sequences the result may be some bytes of alignment too large. Raises MiniCacheError where the settings
    name layers that the model does not have, or a type that its heads cannot be kept in.
    """
    plan = spec.plan_file.plan if spec.plan_file is not None else None
    if n_stream > 1:
        once = _codec_bytes(shape, plan) if plan else 0
        return once + n_stream * (kv_bytes(shape, spec, n_ctx, n_ubatch=n_ubatch) - once)
    own = {one.layer: one.types for one in plan.plain} if plan else _edges(shape, spec.minicache)
    for number, layer in enumerate(shape.layers):
        _check_types(layer, *own.get(number, (spec.type_k, spec.type_v)))
    if plan is not None:
        return plan_bytes(shape, plan, n_ctx, n_ubatch)
    cells, types = n_cells(n_ctx), (spec.type_k, spec.type_v)
    minicache = spec.minicache
    groups = merged_groups(shape, minicache) if minicache is not None else []
    merged = {number for group in groups for number in group}
    total = bytes_beside(shape, types, n_ctx, n_ubatch)
    total += sum(
        _row_bytes(layer, own.get(number, types), cells)
        for number, layer in enumerate(shape.layers)
        if layer.grows and number not in merged
    )
    pool_types = _pool_types(shape, types, minicache.pool_type) if minicache is not None else types
    for group in groups:
        assert minicache is not None
        layer = shape.layers[group[0]]
        total += _row_bytes(layer, types, cells)
        total += _magnitude_bytes(layer, cells) if minicache.mode == "slerp" else 0
        n_exact = minicache.window + n_slots(minicache.retain_block, cells)
        total += _exact_bytes(layer, len(group), pool_types, n_exact)
    return total


def token_bytes(shape: ModelShape, spec: CacheSpec) -> float:
    """The bytes that each further token of a long context adds. Raises MiniCacheError as kv_bytes() does."""
    return (kv_bytes(shape, spec, 2 * LONG) - kv_bytes(shape, spec, LONG)) / LONG


def _edges(shape: ModelShape, minicache: MiniCache | None) -> dict[int, tuple[str, str]]:
    """The types of the layers that grow, where they are given by layer."""
    if minicache is None or minicache.mode != "plain":
        return {}
    growing = [number for number, layer in enumerate(shape.layers) if layer.grows]
    return {layer: minicache.edge_types(index, len(growing)) for index, layer in enumerate(growing)}


def bytes_beside(shape: ModelShape, types: tuple[str, str], n_ctx: int, n_ubatch: int = UBATCH) -> int:
    """The bytes beside what grows with the context: sliding windows, of these types, and recurrent states."""
    cells = n_cells(min(n_cells(n_ctx), shape.window + n_ubatch))
    windows = sum(_row_bytes(layer, types, cells) for layer in shape.layers if layer.kind == "window")
    return windows + sum(layer.state_bytes for layer in shape.layers)


def _check_types(layer: Layer, type_k: str, type_v: str) -> None:
    for name, size in ((type_k, layer.head_size_k), (type_v, layer.head_size_v)):
        if layer.n_head_kv and size % GGML_TYPES[name].block:
            raise MiniCacheError(f"{name} needs a head size that is a multiple of {GGML_TYPES[name].block}")


def plan_bytes(shape: ModelShape, plan: Plan, n_ctx: int, n_ubatch: int = UBATCH) -> int:
    """The bytes of the cache that a plan describes, with its codecs or basis matrices, and of windows and states."""
    cells = n_cells(n_ctx)
    total = bytes_beside(shape, (plan.type_k, plan.type_v), n_ctx, n_ubatch)
    total += sum(
        _row_bytes(shape.layers[number], types, cells)
        for number, types in plan.plain_types().items()
        if shape.layers[number].grows
    )
    for group in plan.groups:
        layer = shape.layers[group.first]
        total += _merged_bytes(layer, group, plan, cells)
        n_exact = plan_window(plan, n_ctx) + n_slots(plan.retain_block, cells)
        total += _exact_bytes(layer, group.n_layer, plan.pool_types, n_exact)
    return total + _codec_bytes(shape, plan)


def plan_window(plan: Plan, n_ctx: int) -> int:
    """How many tokens of a stream a plan keeps uncoded, which is more in a long context."""
    # late, because it loads the native library, which `import minicache_cpp` does not
    from .native_settings import window_at

    return window_at(plan.window, plan.pool_type, n_cells(n_ctx)) if plan.mode == "code" else plan.window


def plan_fixed_bytes(shape: ModelShape, plan: Plan, n_ctx: int) -> int:
    """What no cached token adds to: codecs or basis matrices, exact tokens, sliding windows and states."""
    beside = bytes_beside(shape, (plan.type_k, plan.type_v), n_ctx)
    return _codec_bytes(shape, plan) + plan_window_bytes(shape, plan, plan_window(plan, n_ctx)) + beside


def plan_window_bytes(shape: ModelShape, plan: Plan, window: int) -> int:
    """The bytes of so many tokens in the window, over all groups, and of their index."""
    pool_k, pool_v = (GGML_TYPES[name] for name in plan.pool_types)
    rows = [
        n * (pool_k.row_bytes(layer.n_k) + pool_v.row_bytes(layer.n_v)) + SLOT_BYTES
        for layer, n in ((shape.layers[group.first], group.n_layer) for group in plan.groups)
    ]
    return window * sum(rows)


def n_slots(block: int, cells: int) -> int:
    """How many tokens a group can retain."""
    return -(-cells // block) if block else 0


def _codec_bytes(shape: ModelShape, plan: Plan) -> int:
    if plan.mode == "aligned":
        return sum(group.basis_bytes for group in plan.groups)  # head sizes are multiples of the alignment
    return sum(_aligned(group.codec_bytes(shape.layers[group.first].n_rot)) for group in plan.groups)


def _merged_bytes(layer: Layer, group: GroupFormat, plan: Plan, cells: int) -> int:
    """A group's directions and magnitudes, or its codes."""
    if plan.mode == "aligned":
        return _row_bytes(layer, (plan.type_k, plan.type_v), cells) + _magnitude_bytes(layer, cells)
    row_bytes = (token_row_bytes(layouts, group.n_layer) for layouts in (group.layouts_k, group.layouts_v))
    return sum(_aligned(n * cells) for n in row_bytes)


def _exact_bytes(layer: Layer, n_layer: int, pool_types: tuple[str, str], n: int) -> int:
    """The n tokens that a group of such layers keeps unmerged, in the window or retained, and their index."""
    return _row_bytes(layer, pool_types, n_layer * n) + _aligned(SLOT_BYTES * (n + SLOT_EXTRA))


def _magnitude_bytes(layer: Layer, cells: int) -> int:
    return _rows(GGML_TYPES["f16"], MAGNITUDES * layer.n_head_kv, cells)


def _row_bytes(layer: Layer, types: tuple[str, str], n_rows: int) -> int:
    """A layer's rows of K and of V."""
    return _rows(GGML_TYPES[types[0]], layer.n_k, n_rows) + _rows(GGML_TYPES[types[1]], layer.n_v, n_rows)


def _pool_types(shape: ModelShape, types: tuple[str, str], pool_type: str) -> tuple[str, str]:
    """The types of retained K and V; where heads of the model cannot have the pool's type, it is f16."""
    if pool_type == "cache":
        return types
    fitting = pool_type if shape.growing().divides_into(GGML_TYPES[pool_type].block) else "f16"
    return fitting, fitting


def _rows(ggml_type: GGMLType, n: int, n_rows: int) -> int:
    return _aligned(ggml_type.row_bytes(n) * n_rows)


def _aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT

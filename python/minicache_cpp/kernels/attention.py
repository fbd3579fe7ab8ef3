"""Attention over merged, retained and current entries, and the call of a native attention kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import MiniCacheError
from ..modelfile.ggml_types import GGML_TYPES, POOL_TYPES, cache_type
from ..native import binding
from ..native.declarations import GGML_TYPE_COUNT
from .arrays import (
    Floats,
    as_cells,
    as_floats,
    finite_number,
    float_pointer,
    int_pointer,
    require_shape,
    require_whole_blocks,
    thread_count,
)


class Retained(NamedTuple):
    """Cells with a retained token, which is read in place of their direction and magnitude."""

    cells: npt.ArrayLike  # int [n], at most one in each block of `block` cells
    k: npt.ArrayLike  # [n, n_head_kv, head_size]
    v: npt.ArrayLike  # [n, n_head_kv, head_size]
    block: int
    type: str = "q8_0"  # "f16", "q8_0" or "cache"


class Current(NamedTuple):
    """Cells of the current tokens: exact, neither merged nor rounded."""

    cells: npt.ArrayLike  # int [n]
    k: npt.ArrayLike  # [n, n_head_kv, head_size]
    v: npt.ArrayLike  # [n, n_head_kv, head_size]


def attention(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    *,
    mag_k: npt.ArrayLike | None = None,
    mag_v: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    scale: float | None = None,
    type_k: str = "f16",
    type_v: str = "f16",
    sinks: npt.ArrayLike | None = None,
    max_bias: float = 0.0,
    softcap: float = 0.0,
    retained: Retained | None = None,
    current: Current | None = None,
    n_threads: int | None = None,
    reference: bool = False,
) -> Floats:
    """Attention over merged, retained and current entries under one softmax, [n_q, n_head, head_size].

    q: [n_q, n_head, head_size]; n_head is a multiple of n_head_kv.
    k, v: [n_kv, n_head_kv, head_size], stored as `type_k` and `type_v`; directions where magnitudes are given.
    mag_k, mag_v: [n_kv, n_head_kv], None for 1.
    mask: [n_q, n_kv], added to the scores and rounded to f16 as llama.cpp's masks are; -inf hides a cell.
    scale: of the scores, 1/sqrt(head_size) if None. max_bias: ALiBi's. softcap: 0 for none. sinks: [n_head].
    reference: compute with the plain scalar kernel instead of the vectorised one.
    """
    q = as_floats("q", q, ("n_q", "n_head", "head_size"))
    k = as_floats("k", k, ("n_kv", "n_head_kv", "head_size"))
    v = as_floats("v", v, ("n_kv", "n_head_kv", "head_size"))
    n_kv, n_head_kv, _ = k.shape
    require_shape("k", k, (n_kv, n_head_kv, q.shape[2]))
    require_shape("v", v, k.shape)
    types = {"type_k": cache_type(type_k, "type_k"), "type_v": cache_type(type_v, "type_v")}
    for name, ggml_type in types.items():
        require_whole_blocks(name, ggml_type, q.shape[2])

    call = AttentionCall(q, n_kv, n_head_kv)
    call.set_scores(scale, max_bias, softcap)
    call.set_run(n_threads, reference)
    call.args.k, call.args.v = float_pointer(k), float_pointer(v)
    call.args.mag_k = call.optional("mag_k", mag_k, (n_kv, n_head_kv))
    call.args.mag_v = call.optional("mag_v", mag_v, (n_kv, n_head_kv))
    call.args.type_k, call.args.type_v = types["type_k"].number, types["type_v"].number
    call.set_entries(mask, sinks, retained, current)
    return call.run(lambda result: binding.lib.llama_minicache_attention(call.args, result))


class AttentionCall:
    """The native arguments that attention to merged layers and to codes share, and the arrays they point to."""

    def __init__(self, q: Floats, n_kv: int, n_head_kv: int) -> None:
        n_q, n_head, head_size = q.shape
        if n_head % n_head_kv:
            raise MiniCacheError(f"{n_head} heads of q are not a multiple of {n_head_kv} heads of k and v")
        self.keep: list[Any] = [q]
        self.args = args = binding.ffi.new("struct llama_minicache_attention_args *")
        args.q = float_pointer(q)
        args.n_q, args.n_head, args.head_size = n_q, n_head, head_size
        args.n_kv, args.n_head_kv = n_kv, n_head_kv
        args.type_pool = GGML_TYPE_COUNT

    def set_scores(self, scale: float | None, max_bias: float, softcap: float) -> None:
        """How scores are made from products."""
        args = self.args
        args.scale = 1 / math.sqrt(args.head_size) if scale is None else finite_number("scale", scale)
        args.max_bias = finite_number("max_bias", max_bias)
        args.softcap = finite_number("softcap", softcap)

    def set_run(self, n_threads: int | None, reference: bool) -> None:
        """How the kernel runs."""
        self.args.n_threads, self.args.reference = thread_count(n_threads), reference

    def set_entries(
        self,
        mask: npt.ArrayLike | None,
        sinks: npt.ArrayLike | None,
        retained: Retained | None,
        current: Current | None,
    ) -> None:
        """What is attended to besides the cells of the cache, and which of those are hidden."""
        args = self.args
        args.mask = self.optional("mask", mask, (args.n_q, args.n_kv), finite=False)
        args.sinks = self.optional("sinks", sinks, (args.n_head,))
        if retained is not None:
            self.set_retained(retained)
        if current is not None:
            args.current, args.n_current = self.cells("current.cells", current.cells)
            shape = (args.n_current, args.n_head_kv, args.head_size)
            args.cur_k = self.optional("current.k", current.k, shape)
            args.cur_v = self.optional("current.v", current.v, shape)

    def set_retained(self, retained: Retained) -> None:
        """The pool, and where its tokens are."""
        args = self.args
        if retained.block < 1:
            raise MiniCacheError(
                f"retained.block={retained.block!r} is not a block length; it must be 1 or more"
            )
        if retained.type not in POOL_TYPES:
            raise MiniCacheError(f"retained.type={retained.type!r}; choose one of {', '.join(POOL_TYPES)}")
        args.retained, args.n_retained = self.cells("retained.cells", retained.cells)
        shape = (args.n_retained, args.n_head_kv, args.head_size)
        args.pool_k = self.optional("retained.k", retained.k, shape)
        args.pool_v = self.optional("retained.v", retained.v, shape)
        args.retain_block = retained.block
        if retained.type != "cache":
            require_whole_blocks("retained.type", GGML_TYPES[retained.type], args.head_size)
            args.type_pool = GGML_TYPES[retained.type].number

    def optional(
        self, name: str, value: npt.ArrayLike | None, shape: tuple[int, ...], finite: bool = True
    ) -> Any:
        """A pointer to an array of this shape, which this object keeps; NULL for None."""
        if value is None:
            return binding.ffi.NULL
        array = as_floats(name, value, ("",) * len(shape), finite)
        require_shape(name, array, shape)
        self.keep.append(array)
        return float_pointer(array)

    def cells(self, name: str, value: npt.ArrayLike) -> tuple[Any, int]:
        """A pointer to cell numbers, which this object keeps alive, and their count."""
        array = as_cells(name, value, self.args.n_kv)
        self.keep.append(array)
        return int_pointer(array), len(array)

    def run(self, kernel: Callable[[Any], bool]) -> Floats:
        """What the kernel writes to a result of [n_q, n_head, head_size]."""
        result = np.zeros((self.args.n_q, self.args.n_head, self.args.head_size), np.float32)
        binding.check(kernel(float_pointer(result)), "the attention")
        return result

"""MiniCache's arithmetic on NumPy arrays, by the native code that runs inside llama.cpp.

For tests and for people who study the method; models use it through Llama(..., minicache=MiniCache(...)).
Head layouts are [n_tokens, n_head, head_size] throughout, and everything is float32.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _native
from .errors import MiniCacheError
from .ggml_types import GGML_TYPES, POOL_TYPES, GGMLType, cache_type

Floats = npt.NDArray[np.float32]


class Merged(NamedTuple):
    direction: Floats  # [n_tokens, n_head_kv, head_size], of length 1
    mag_a: Floats  # [n_tokens, n_head_kv]
    mag_b: Floats
    distance: Floats  # Ω/π


class Retained(NamedTuple):
    """Cells that take a token of their own, unmerged, in place of their direction and magnitude."""

    cells: npt.ArrayLike  # int [n], at most one in each block of `block` cells
    k: npt.ArrayLike  # [n, n_head_kv, head_size]
    v: npt.ArrayLike
    block: int
    type: str = "q8_0"  # "f16", "q8_0" or "cache"


class Current(NamedTuple):
    """Cells of the current tokens: exact, neither merged nor rounded."""

    cells: npt.ArrayLike  # int [n]
    k: npt.ArrayLike  # [n, n_head_kv, head_size]
    v: npt.ArrayLike


def merge(x_a: npt.ArrayLike, x_b: npt.ArrayLike, t: float = 0.6) -> Merged:
    """Merge two layers' K, or V (eqs. 3 and 4 of the paper).

    x_a and x_b are [n_tokens, n_head_kv, head_size], and so is the direction; magnitudes and distances are
    [n_tokens, n_head_kv].
    """
    x_a = _floats("x_a", x_a, ("n_tokens", "n_head_kv", "head_size"))
    x_b = _floats("x_b", x_b, ("n_tokens", "n_head_kv", "head_size"))
    if x_a.shape != x_b.shape:
        raise MiniCacheError(f"x_a is {_shape(x_a)} and x_b is {_shape(x_b)}; they must be of one shape")
    if not (isinstance(t, (int, float, np.number)) and 0 <= t <= 1):
        raise MiniCacheError(f"t={t!r} is outside its range, [0, 1]")
    direction = np.zeros_like(x_a)
    mag_a, mag_b, distance = (np.zeros(x_a.shape[:2], np.float32) for _ in range(3))
    done = _native.lib.llama_minicache_merge(
        _pointer(x_a), _pointer(x_b), *x_a.shape, t, *map(_pointer, (direction, mag_a, mag_b, distance))
    )
    _native.check(done, "llama_minicache_merge")
    return Merged(direction, mag_a, mag_b, distance)


def restore(direction: npt.ArrayLike, mag: npt.ArrayLike) -> Floats:
    """One layer's K, or V, as attention sees it: magnitude times direction."""
    direction = _floats("direction", direction, ("n_tokens", "n_head_kv", "head_size"))
    mag = _floats("mag", mag, ("n_tokens", "n_head_kv"))
    if mag.shape != direction.shape[:2]:
        raise MiniCacheError(
            f"mag is {_shape(mag)}; with this direction it must be {_shape(direction[..., 0])}"
        )
    restored: Floats = direction * mag[:, :, None]
    return restored


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
    k, v: [n_kv, n_head_kv, head_size], kept in `type_k` and `type_v`; directions where magnitudes are given.
    mag_k, mag_v: [n_kv, n_head_kv], None for 1.
    mask: [n_q, n_kv], added to the scores and rounded to f16 as llama.cpp's masks are; -inf hides a cell.
    scale: of the scores, 1/sqrt(head_size) if None. max_bias: ALiBi's. softcap: 0 for none. sinks: [n_head].
    reference: the plain scalar kernel in place of the vectorised one.
    """
    q = _floats("q", q, ("n_q", "n_head", "head_size"))
    k = _floats("k", k, ("n_kv", "n_head_kv", "head_size"))
    v = _floats("v", v, ("n_kv", "n_head_kv", "head_size"))
    n_q, n_head, head_size = q.shape
    n_kv, n_head_kv, _ = k.shape
    _same("k", k, (n_kv, n_head_kv, head_size))
    _same("v", v, (n_kv, n_head_kv, head_size))
    if n_head % n_head_kv:
        raise MiniCacheError(f"{n_head} heads of q are no multiple of {n_head_kv} heads of k and v")
    types = {"type_k": cache_type(type_k, "type_k"), "type_v": cache_type(type_v, "type_v")}
    for name, ggml_type in types.items():
        _whole_blocks(name, ggml_type, head_size)
    keep: list[Any] = [q, k, v]  # the arrays must outlive the call

    def optional(name: str, value: npt.ArrayLike | None, shape: tuple[int, ...], finite: bool = True) -> Any:
        if value is None:
            return _native.ffi.NULL
        array = _floats(name, value, ("",) * len(shape), finite)
        _same(name, array, shape)
        keep.append(array)
        return _pointer(array)

    def cells(name: str, value: npt.ArrayLike) -> tuple[Any, int]:
        array = _cells(name, value, n_kv)
        keep.append(array)
        return _native.ffi.from_buffer("int32_t[]", array), len(array)

    args = _native.ffi.new("struct llama_minicache_attention_args *")
    args.q, args.k, args.v = _pointer(q), _pointer(k), _pointer(v)
    args.n_q, args.n_kv, args.n_head, args.n_head_kv, args.head_size = n_q, n_kv, n_head, n_head_kv, head_size
    args.mag_k = optional("mag_k", mag_k, (n_kv, n_head_kv))
    args.mag_v = optional("mag_v", mag_v, (n_kv, n_head_kv))
    args.mask = optional("mask", mask, (n_q, n_kv), finite=False)
    args.sinks = optional("sinks", sinks, (n_head,))
    args.type_k, args.type_v = types["type_k"].number, types["type_v"].number
    args.type_pool = _native.GGML_TYPE_COUNT
    args.scale = 1 / math.sqrt(head_size) if scale is None else _finite("scale", scale)
    args.max_bias, args.softcap = _finite("max_bias", max_bias), _finite("softcap", softcap)
    args.n_threads = _threads(n_threads)
    args.reference = reference
    if retained is not None:
        if retained.block < 1:
            raise MiniCacheError(
                f"retained.block={retained.block!r} is no block length; it must be 1 or more"
            )
        args.retained, args.n_retained = cells("retained.cells", retained.cells)
        shape = (args.n_retained, n_head_kv, head_size)
        args.pool_k = optional("retained.k", retained.k, shape)
        args.pool_v = optional("retained.v", retained.v, shape)
        args.retain_block = retained.block
        if retained.type not in POOL_TYPES:
            raise MiniCacheError(f"retained.type={retained.type!r}; choose one of {', '.join(POOL_TYPES)}")
        if retained.type != "cache":
            _whole_blocks("retained.type", GGML_TYPES[retained.type], head_size)
            args.type_pool = GGML_TYPES[retained.type].number
    if current is not None:
        args.current, args.n_current = cells("current.cells", current.cells)
        shape = (args.n_current, n_head_kv, head_size)
        args.cur_k = optional("current.k", current.k, shape)
        args.cur_v = optional("current.v", current.v, shape)
    result = np.zeros((n_q, n_head, head_size), np.float32)
    _native.check(_native.lib.llama_minicache_attention(args, _pointer(result)), "llama_minicache_attention")
    return result


def _floats(name: str, value: npt.ArrayLike, dims: tuple[str, ...], finite: bool = True) -> Floats:
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "fiu":
        raise MiniCacheError(f"{name} holds {array.dtype}; numbers that fit float32 are needed")
    if array.ndim != len(dims):
        names = f" [{', '.join(dims)}]" if all(dims) else ""
        raise MiniCacheError(
            f"{name} has {array.ndim} dimensions, {_shape(array)}; it needs {len(dims)}{names}"
        )
    if not all(array.shape):
        raise MiniCacheError(f"{name} is empty, {_shape(array)}")
    with np.errstate(over="ignore"):  # an overflow becomes inf, and inf is told below
        array = np.ascontiguousarray(array, dtype=np.float32)
    if finite and not np.isfinite(array).all():
        raise MiniCacheError(f"{name} holds NaN or infinite numbers, or some too large for float32")
    return array


def _cells(name: str, value: npt.ArrayLike, n_kv: int) -> npt.NDArray[np.int32]:
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise MiniCacheError(f"{name} must be a list of cell numbers")
    if array.size and (array.min() < 0 or array.max() >= n_kv):
        raise MiniCacheError(
            f"{name} goes from {array.min()} to {array.max()}; the cells are 0 to {n_kv - 1}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def _same(name: str, array: Floats, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise MiniCacheError(f"{name} is {_shape(array)}; with these arguments it must be {list(shape)}")


def _whole_blocks(name: str, ggml_type: GGMLType, head_size: int) -> None:
    if head_size % ggml_type.block:
        raise MiniCacheError(
            f"{name}={ggml_type.name} codes {ggml_type.block} numbers together, "
            f"and head size {head_size} is no multiple of that"
        )


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise MiniCacheError(f"{name}={value!r} is not finite")
    return float(value)


def _threads(n_threads: int | None) -> int:
    if n_threads is None:
        return os.cpu_count() or 1
    if n_threads < 1:
        raise MiniCacheError(f"n_threads={n_threads!r}; it must be 1 or more")
    return n_threads


def _shape(array: npt.NDArray[Any]) -> list[int]:
    return list(array.shape)


def _pointer(array: Floats) -> Any:
    return _native.ffi.from_buffer("float[]", array)

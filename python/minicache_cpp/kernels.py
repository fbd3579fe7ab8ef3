"""MiniCache's arithmetic on NumPy arrays, by the native code that runs inside llama.cpp.

For tests and for people who study the method; models use it through Llama(..., minicache=MiniCache(...)).
Head layouts are [n_tokens, n_head, head_size] throughout, and everything is float32.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .cache.code_format import MAX_LAYERS, Layout
from .errors import MiniCacheError
from .modelfile.ggml_types import GGML_TYPES, POOL_TYPES, GGMLType, cache_type
from .native import binding

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

ROPES = ("none", "neighbours", "halves")


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


@dataclass(frozen=True)
class Codec:
    """What a group's shared codes are made and read with; `data` is laid out as minicache-code.h says.

    units_k, units_v: units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits.
    rope: which numbers of a head of K RoPE turns together, "none", "neighbours" or "halves", among the first n_rot.
    n_layer: the layers that share a code, 1 to 4.
    """

    data: bytes
    units_k: tuple[int, ...]
    units_v: tuple[int, ...]
    head_size_k: int
    head_size_v: int
    n_head_kv: int
    rope: str = "none"
    n_rot: int = 0
    n_layer: int = 2


class Codes(NamedTuple):
    k: Bytes  # [n_tokens, n_head_kv, bytes of a code row]
    v: Bytes
    distance_k: (
        Floats  # [n_tokens, n_head_kv], squared errors relative to the squared lengths, mean of the layers
    )
    distance_v: Floats


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
    done = binding.lib.llama_minicache_merge(
        _pointer(x_a), _pointer(x_b), *x_a.shape, t, *map(_pointer, (direction, mag_a, mag_b, distance))
    )
    binding.check(done, "llama_minicache_merge")
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
    n_kv, n_head_kv, _ = k.shape
    _same("k", k, (n_kv, n_head_kv, q.shape[2]))
    _same("v", v, k.shape)
    types = {"type_k": cache_type(type_k, "type_k"), "type_v": cache_type(type_v, "type_v")}
    for name, ggml_type in types.items():
        _whole_blocks(name, ggml_type, q.shape[2])

    call = _AttentionCall(q, n_kv, n_head_kv, scale, max_bias, softcap, n_threads, reference)
    args = call.args
    args.k, args.v = _pointer(k), _pointer(v)
    args.mag_k = call.optional("mag_k", mag_k, (n_kv, n_head_kv))
    args.mag_v = call.optional("mag_v", mag_v, (n_kv, n_head_kv))
    args.type_k, args.type_v = types["type_k"].number, types["type_v"].number
    call.add(mask, sinks, retained, current)
    return call.run(lambda result: binding.lib.llama_minicache_attention(args, result))


#
# shared codes
#


def encode(
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    codec: Codec,
    *,
    bases: npt.ArrayLike | None = None,
    n_threads: int | None = None,
    reference: bool = False,
) -> Codes:
    """The K (after RoPE) and V of a group's layers as shared codes.

    k, v: [n_layer, n_tokens, n_head_kv, head_size].
    bases: [n_tokens], the positions that K is coded relative to, None for 0.
    reference: the plain scalar kernel in place of the vectorised one.
    """
    native, _keep = _codec(codec)
    dims = ("n_layer", "n_tokens", "n_head_kv", "head_size")
    k, v = _floats("k", k, dims), _floats("v", v, dims)
    n_tokens, n_head_kv = k.shape[1], codec.n_head_kv
    _same("k", k, (codec.n_layer, n_tokens, n_head_kv, codec.head_size_k))
    _same("v", v, (codec.n_layer, n_tokens, n_head_kv, codec.head_size_v))
    rows = [
        np.zeros((n_tokens, n_head_kv, _row_bytes(codec, units)), np.uint8)
        for units in (codec.units_k, codec.units_v)
    ]
    distances = [np.zeros((n_tokens, n_head_kv), np.float32) for _ in rows]
    done = binding.lib.llama_minicache_encode(
        native,
        _pointer(k),
        _pointer(v),
        _ints(_bases(bases, n_tokens)),
        n_tokens,
        _threads(n_threads),
        reference,
        *map(_byte_pointer, rows),
        *map(_pointer, distances),
    )
    binding.check(done, "llama_minicache_encode")
    return Codes(rows[0], rows[1], distances[0], distances[1])


def decode(
    code_k: npt.ArrayLike,
    code_v: npt.ArrayLike,
    codec: Codec,
    side: int,
    *,
    bases: npt.ArrayLike | None = None,
) -> tuple[Floats, Floats]:
    """K and V of layer `side` of the group, from 0 on, that code rows restore, [n_tokens, n_head_kv, head_size]."""
    native, _keep = _codec(codec)
    k_rows, v_rows = _rows(codec, code_k, code_v)
    k = np.zeros((*k_rows.shape[:2], codec.head_size_k), np.float32)
    v = np.zeros((*v_rows.shape[:2], codec.head_size_v), np.float32)
    done = binding.lib.llama_minicache_decode(
        native,
        _byte_pointer(k_rows),
        _byte_pointer(v_rows),
        _ints(_bases(bases, len(k_rows))),
        len(k_rows),
        side,
        _pointer(k),
        _pointer(v),
    )
    binding.check(done, "llama_minicache_decode")
    return k, v


def code_attention(
    q: npt.ArrayLike,
    code_k: npt.ArrayLike,
    code_v: npt.ArrayLike,
    codec: Codec,
    side: int,
    *,
    bases: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    scale: float | None = None,
    sinks: npt.ArrayLike | None = None,
    max_bias: float = 0.0,
    softcap: float = 0.0,
    retained: Retained | None = None,
    current: Current | None = None,
    n_threads: int | None = None,
    reference: bool = False,
) -> Floats:
    """As attention(), of layer `side` of the group, from 0 on, over code rows as encode() gives them.

    code_k, code_v: [n_kv, n_head_kv, bytes of a code row].
    bases: [n_kv], the positions that K was coded relative to, None for 0.
    """
    native, _keep = _codec(codec)
    q = _floats("q", q, ("n_q", "n_head", "head_size"))
    k_rows, v_rows = _rows(codec, code_k, code_v)
    base = _bases(bases, len(k_rows))
    call = _AttentionCall(q, len(k_rows), codec.n_head_kv, scale, max_bias, softcap, n_threads, reference)
    if retained is not None and retained.type == "cache":
        raise MiniCacheError("retained.type='cache': codes have no cache type; choose f16 or q8_0")
    call.add(mask, sinks, retained, current)
    return call.run(
        lambda result: binding.lib.llama_minicache_code_attention(
            native, _byte_pointer(k_rows), _byte_pointer(v_rows), _ints(base), side, call.args, result
        )
    )


def _row_bytes(codec: Codec, units: tuple[int, ...]) -> int:
    return Layout(units).row_bytes(codec.n_layer)


def _codec(codec: Codec) -> tuple[Any, Any]:
    """The native struct, and what must outlive its use."""
    for name in ("units_k", "units_v"):
        if len(getattr(codec, name)) != 7:
            raise MiniCacheError(
                f"{name}={getattr(codec, name)!r} must be 7 numbers, for 8, 6, 5, 4, 3, 2 and 1 bits"
            )
    if not 1 <= codec.n_layer <= MAX_LAYERS:
        raise MiniCacheError(f"n_layer={codec.n_layer!r} is outside its range, 1 to {MAX_LAYERS}")
    if codec.rope not in ROPES:
        raise MiniCacheError(f"rope={codec.rope!r}; choose one of {', '.join(ROPES)}")
    data = binding.ffi.from_buffer("char[]", codec.data)
    native = binding.ffi.new(
        "struct llama_minicache_codec *",
        {
            "data": data,
            "size": len(codec.data),
            "units_k": codec.units_k,
            "units_v": codec.units_v,
            "n_layer": codec.n_layer,
            "head_size_k": codec.head_size_k,
            "head_size_v": codec.head_size_v,
            "n_head_kv": codec.n_head_kv,
            "rope": ROPES.index(codec.rope),
            "n_rot": codec.n_rot,
        },
    )
    return native, data


def _rows(codec: Codec, code_k: npt.ArrayLike, code_v: npt.ArrayLike) -> tuple[Bytes, Bytes]:
    rows: list[Bytes] = []
    for name, value, units in (("code_k", code_k, codec.units_k), ("code_v", code_v, codec.units_v)):
        array = np.ascontiguousarray(value)
        shape = (len(rows[0]) if rows else len(array), codec.n_head_kv, _row_bytes(codec, units))
        if array.dtype != np.uint8 or array.shape != shape or not array.size:
            raise MiniCacheError(
                f"{name} is {array.dtype} {_shape(array)}; with this codec it must be uint8 {list(shape)}"
            )
        rows.append(array)
    return rows[0], rows[1]


def _bases(bases: npt.ArrayLike | None, n_tokens: int) -> npt.NDArray[np.int32]:
    array = np.zeros(n_tokens, np.int32) if bases is None else np.asarray(bases)
    if array.dtype.kind not in "iu" or array.shape != (n_tokens,):
        raise MiniCacheError(f"bases must be {n_tokens} positions, one for each token")
    return np.ascontiguousarray(array, dtype=np.int32)


class _AttentionCall:
    """The arguments that both attentions take, and the arrays that must outlive the call."""

    def __init__(
        self,
        q: Floats,
        n_kv: int,
        n_head_kv: int,
        scale: float | None,
        max_bias: float,
        softcap: float,
        n_threads: int | None,
        reference: bool,
    ) -> None:
        n_q, n_head, head_size = q.shape
        if n_head % n_head_kv:
            raise MiniCacheError(f"{n_head} heads of q are no multiple of {n_head_kv} heads of k and v")
        self.keep: list[Any] = [q]
        self.args = args = binding.ffi.new("struct llama_minicache_attention_args *")
        args.q = _pointer(q)
        args.n_q, args.n_kv, args.n_head, args.n_head_kv, args.head_size = (
            n_q,
            n_kv,
            n_head,
            n_head_kv,
            head_size,
        )
        args.type_pool = binding.GGML_TYPE_COUNT
        args.scale = 1 / math.sqrt(head_size) if scale is None else _finite("scale", scale)
        args.max_bias, args.softcap = _finite("max_bias", max_bias), _finite("softcap", softcap)
        args.n_threads = _threads(n_threads)
        args.reference = reference

    def optional(
        self, name: str, value: npt.ArrayLike | None, shape: tuple[int, ...], finite: bool = True
    ) -> Any:
        if value is None:
            return binding.ffi.NULL
        array = _floats(name, value, ("",) * len(shape), finite)
        _same(name, array, shape)
        self.keep.append(array)
        return _pointer(array)

    def cells(self, name: str, value: npt.ArrayLike) -> tuple[Any, int]:
        array = _cells(name, value, self.args.n_kv)
        self.keep.append(array)
        return _ints(array), len(array)

    def add(
        self,
        mask: npt.ArrayLike | None,
        sinks: npt.ArrayLike | None,
        retained: Retained | None,
        current: Current | None,
    ) -> None:
        args = self.args
        args.mask = self.optional("mask", mask, (args.n_q, args.n_kv), finite=False)
        args.sinks = self.optional("sinks", sinks, (args.n_head,))
        if retained is not None:
            if retained.block < 1:
                raise MiniCacheError(
                    f"retained.block={retained.block!r} is no block length; it must be 1 or more"
                )
            args.retained, args.n_retained = self.cells("retained.cells", retained.cells)
            shape = (args.n_retained, args.n_head_kv, args.head_size)
            args.pool_k = self.optional("retained.k", retained.k, shape)
            args.pool_v = self.optional("retained.v", retained.v, shape)
            args.retain_block = retained.block
            if retained.type not in POOL_TYPES:
                raise MiniCacheError(
                    f"retained.type={retained.type!r}; choose one of {', '.join(POOL_TYPES)}"
                )
            if retained.type != "cache":
                _whole_blocks("retained.type", GGML_TYPES[retained.type], args.head_size)
                args.type_pool = GGML_TYPES[retained.type].number
        if current is not None:
            args.current, args.n_current = self.cells("current.cells", current.cells)
            shape = (args.n_current, args.n_head_kv, args.head_size)
            args.cur_k = self.optional("current.k", current.k, shape)
            args.cur_v = self.optional("current.v", current.v, shape)

    def run(self, kernel: Callable[[Any], bool]) -> Floats:
        result = np.zeros((self.args.n_q, self.args.n_head, self.args.head_size), np.float32)
        binding.check(kernel(_pointer(result)), "the attention")
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
    return binding.ffi.from_buffer("float[]", array)


def _ints(array: npt.NDArray[np.int32]) -> Any:
    return binding.ffi.from_buffer("int32_t[]", array)


def _byte_pointer(array: Bytes) -> Any:
    return binding.ffi.from_buffer("uint8_t[]", array)

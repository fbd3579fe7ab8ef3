"""Shared codes: a group's layers coded together, restored one by one, and attention over the codes (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..cache.code_format import MAX_LAYERS, WIDTHS, Layout, token_row_bytes
from ..errors import MiniCacheError
from ..native import binding
from .arrays import (
    Bytes,
    Floats,
    Ints,
    as_bases,
    as_floats,
    byte_pointer,
    float_pointer,
    int_pointer,
    require_shape,
    shape_of,
    thread_count,
)
from .attention import AttentionCall, Current, Retained

# of one width, in a code
MOST_UNITS = 255
ROPES = ("none", "neighbours", "halves")  # the native library's numbers of them


@dataclass(frozen=True)
class Codec:
    """What a group's shared codes are made and read with; `data` is laid out as minicache-code.h says, without `heads`.

    units_k, units_v: [n_head_kv][7], units of 16 coefficients of 8, 6, 5, 4, 3, 2 and 1 bits.
    rope: which numbers of a head of K RoPE turns together, "none", "neighbours" or "halves", among the first n_rot.
    n_layer: the layers that share a code, 1 to 4.
    """

    data: bytes
    units_k: tuple[tuple[int, ...], ...]
    units_v: tuple[tuple[int, ...], ...]
    head_size_k: int
    head_size_v: int
    n_head_kv: int
    rope: str = "none"
    n_rot: int = 0
    n_layer: int = 2


class Codes(NamedTuple):
    """The tokens' rows of codes, and how far what they restore is from what was coded.

    Distances are squared errors relative to the squared lengths, the mean of the layers.
    """

    k: Bytes  # [n_tokens, bytes of a token's row]: the code rows of all KV heads
    v: Bytes  # [n_tokens, bytes of a token's row]
    distance_k: Floats  # [n_tokens, n_head_kv]
    distance_v: Floats  # [n_tokens, n_head_kv]


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
    reference: compute with the plain scalar kernel instead of the vectorised one.
    """
    native = _native(codec)
    dims = ("n_layer", "n_tokens", "n_head_kv", "head_size")
    k, v = as_floats("k", k, dims), as_floats("v", v, dims)
    n_tokens, n_head_kv = k.shape[1], codec.n_head_kv
    require_shape("k", k, (codec.n_layer, n_tokens, n_head_kv, codec.head_size_k))
    require_shape("v", v, (codec.n_layer, n_tokens, n_head_kv, codec.head_size_v))
    rows = [np.zeros((n_tokens, n_bytes), np.uint8) for n_bytes in native.row_bytes]
    distances = [np.zeros((n_tokens, n_head_kv), np.float32) for _ in rows]
    done = binding.lib.llama_minicache_encode(
        native.struct,
        float_pointer(k),
        float_pointer(v),
        int_pointer(as_bases(bases, n_tokens)),
        n_tokens,
        thread_count(n_threads),
        reference,
        *map(byte_pointer, rows),
        *map(float_pointer, distances),
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
    """K and V of one layer, as code rows restore them, [n_tokens, n_head_kv, head_size] each.

    code_k, code_v: [n_tokens, bytes of a token's row]. side: the layer's number in the group, from 0 on.
    bases: [n_tokens], the positions that K was coded relative to, None for 0.
    """
    native = _native(codec)
    k_rows, v_rows = _rows(native, code_k, code_v)
    k = np.zeros((len(k_rows), codec.n_head_kv, codec.head_size_k), np.float32)
    v = np.zeros((len(v_rows), codec.n_head_kv, codec.head_size_v), np.float32)
    done = binding.lib.llama_minicache_decode(
        native.struct,
        byte_pointer(k_rows),
        byte_pointer(v_rows),
        int_pointer(as_bases(bases, len(k_rows))),
        len(k_rows),
        side,
        float_pointer(k),
        float_pointer(v),
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
    """Attention of one layer over code rows as encode() returns them, [n_q, n_head, head_size].

    code_k, code_v: [n_kv, bytes of a token's row]. side: the layer's number in the group, from 0 on.
    bases: [n_kv], the positions that K was coded relative to, None for 0.
    The other arguments are those of attention().
    """
    native = _native(codec)
    q = as_floats("q", q, ("n_q", "n_head", "head_size"))
    k_rows, v_rows = _rows(native, code_k, code_v)
    base = as_bases(bases, len(k_rows))
    if retained is not None and retained.type == "cache":
        raise MiniCacheError("retained.type='cache': codes have no cache type; choose f16 or q8_0")
    call = AttentionCall(q, len(k_rows), codec.n_head_kv)
    call.set_scores(scale, max_bias, softcap)
    call.set_run(n_threads, reference)
    call.set_entries(mask, sinks, retained, current)
    return call.run(
        lambda result: binding.lib.llama_minicache_code_attention(
            native.struct,
            byte_pointer(k_rows),
            byte_pointer(v_rows),
            int_pointer(base),
            side,
            call.args,
            result,
        )
    )


class NativeCodec(NamedTuple):
    """A codec as the native library takes it."""

    struct: Any
    # the bytes of a token's row of K, and of V
    row_bytes: tuple[int, int]
    # what the struct points to, and what must outlive it
    kept: Any


def _native(codec: Codec) -> NativeCodec:
    units_k, units_v = _units(codec, "units_k"), _units(codec, "units_v")
    if not 1 <= codec.n_layer <= MAX_LAYERS:
        raise MiniCacheError(f"n_layer={codec.n_layer!r} is outside its range, 1 to {MAX_LAYERS}")
    if codec.rope not in ROPES:
        raise MiniCacheError(f"rope={codec.rope!r}; choose one of {', '.join(ROPES)}")
    data = binding.ffi.from_buffer("char[]", codec.data)
    struct = binding.ffi.new(
        "struct llama_minicache_codec *",
        {
            "data": data,
            "size": len(codec.data),
            "units_k": int_pointer(units_k),
            "units_v": int_pointer(units_v),
            "n_layer": codec.n_layer,
            "head_size_k": codec.head_size_k,
            "head_size_v": codec.head_size_v,
            "n_head_kv": codec.n_head_kv,
            "rope": ROPES.index(codec.rope),
            "n_rot": codec.n_rot,
        },
    )
    row_bytes = _row_bytes(units_k, codec.n_layer), _row_bytes(units_v, codec.n_layer)
    return NativeCodec(struct, row_bytes, (data, units_k, units_v))


def _row_bytes(units: Ints, n_layer: int) -> int:
    """The bytes of a token's row, in Python's numbers, which do not wrap."""
    return token_row_bytes(tuple(Layout(tuple(one)) for one in units.tolist()), n_layer)


def _units(codec: Codec, name: str) -> Ints:
    """The units of the KV heads, [n_head_kv, 7]."""
    given = getattr(codec, name)
    try:
        units = np.asarray(given)
    except ValueError:  # rows of different lengths
        units = np.empty(0)
    shape = codec.n_head_kv, len(WIDTHS)
    if (
        units.dtype.kind not in "iu"
        or units.shape != shape
        or (units < 0).any()
        or (units > MOST_UNITS).any()
    ):
        raise MiniCacheError(
            f"{name}={given!r} must be 7 numbers from 0 to {MOST_UNITS} for each of {codec.n_head_kv} KV heads, "
            "its units of 8, 6, 5, 4, 3, 2 and 1 bits"
        )
    return np.ascontiguousarray(units, dtype=np.int32)


def _rows(native: NativeCodec, code_k: npt.ArrayLike, code_v: npt.ArrayLike) -> tuple[Bytes, Bytes]:
    """The tokens' rows of K and V, as the codec lays them out."""
    rows: list[Bytes] = []
    given = ("code_k", code_k), ("code_v", code_v)
    for (name, value), n_bytes in zip(given, native.row_bytes, strict=True):
        array = np.ascontiguousarray(value)
        shape = (len(rows[0]) if rows else len(array), n_bytes)
        if array.dtype != np.uint8 or array.shape != shape or not array.size:
            raise MiniCacheError(
                f"{name} is {array.dtype} {shape_of(array)}; with this codec it must be uint8 {list(shape)}"
            )
        rows.append(array)
    return rows[0], rows[1]

"""NumPy arrays on their way to native code: what they must be, and pointers to them."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MiniCacheError
from ..modelfile.ggml_types import GGMLType
from ..native import binding

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


def as_floats(name: str, value: npt.ArrayLike, dims: tuple[str, ...], finite: bool = True) -> Floats:
    """The array as contiguous float32 with these dimensions, whose names are for the message ("" for none)."""
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind not in "fiu":
        raise MiniCacheError(f"{name} holds {array.dtype}; numbers that fit float32 are needed")
    if array.ndim != len(dims):
        names = f" [{', '.join(dims)}]" if all(dims) else ""
        raise MiniCacheError(
            f"{name} has {array.ndim} dimensions, {shape_of(array)}; it needs {len(dims)}{names}"
        )
    if not all(array.shape):
        raise MiniCacheError(f"{name} is empty, {shape_of(array)}")
    with np.errstate(over="ignore"):  # an overflow becomes infinite, which is refused below
        array = np.ascontiguousarray(array, dtype=np.float32)
    if finite and not np.isfinite(array).all():
        raise MiniCacheError(f"{name} holds NaN or infinite numbers, or some too large for float32")
    return array


def as_cells(name: str, value: npt.ArrayLike, n_kv: int) -> Ints:
    """The array as numbers of cells, of which there are n_kv."""
    array = np.asarray(value)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise MiniCacheError(f"{name} must be a list of cell numbers")
    if array.size and (array.min() < 0 or array.max() >= n_kv):
        raise MiniCacheError(
            f"{name} goes from {array.min()} to {array.max()}; the cells are 0 to {n_kv - 1}"
        )
    return np.ascontiguousarray(array, dtype=np.int32)


def as_bases(bases: npt.ArrayLike | None, n_tokens: int) -> Ints:
    """The positions that K is coded relative to, [n_tokens], 0 for None."""
    array = np.zeros(n_tokens, np.int32) if bases is None else np.asarray(bases)
    if array.dtype.kind not in "iu" or array.shape != (n_tokens,):
        raise MiniCacheError(f"bases must be {n_tokens} positions, one for each token")
    return np.ascontiguousarray(array, dtype=np.int32)


def require_shape(name: str, array: Floats, shape: tuple[int, ...]) -> None:
    """Raises MiniCacheError if the array has another shape."""
    if array.shape != shape:
        raise MiniCacheError(f"{name} is {shape_of(array)}; with these arguments it must be {list(shape)}")


def require_whole_blocks(name: str, ggml_type: GGMLType, head_size: int) -> None:
    """Raises MiniCacheError if a head does not fill whole blocks of a type."""
    if head_size % ggml_type.block:
        raise MiniCacheError(
            f"{name}={ggml_type.name} codes {ggml_type.block} numbers together, "
            f"and head size {head_size} is not a multiple of that"
        )


def finite_number(name: str, value: float) -> float:
    """The number as a float; MiniCacheError where it is not finite."""
    if not math.isfinite(value):
        raise MiniCacheError(f"{name}={value!r} is not finite")
    return float(value)


def thread_count(n_threads: int | None) -> int:
    """The number of threads, all cores for None."""
    if n_threads is None:
        return os.cpu_count() or 1
    if n_threads < 1:
        raise MiniCacheError(f"n_threads={n_threads!r}; it must be 1 or more")
    return n_threads


def shape_of(array: npt.NDArray[Any]) -> list[int]:
    """The shape as messages show it."""
    return list(array.shape)


def float_pointer(array: Floats) -> Any:
    """The array as native code takes it, as long as the array lives; so do the others."""
    return binding.ffi.from_buffer("float[]", array)


def int_pointer(array: Ints) -> Any:
    return binding.ffi.from_buffer("int32_t[]", array)


def byte_pointer(array: Bytes) -> Any:
    return binding.ffi.from_buffer("uint8_t[]", array)

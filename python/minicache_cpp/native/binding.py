"""Our C API (llama-minicache.h), bound with cffi to the libllama that llama_cpp has loaded."""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cffi

from ..errors import MiniCacheError
from . import library
from .declarations import DECLARATIONS, FOREIGN

ffi = cffi.FFI()
ffi.cdef(FOREIGN)
ffi.cdef(DECLARATIONS)
lib: Any = ffi.dlopen(str(library.load()))
# llama.h, bound by llama_cpp with ctypes to the same library
llama_h: Any = importlib.import_module("llama_cpp.llama_cpp")


def last_error() -> str:
    return text(lib.llama_minicache_last_error())


def check(done: bool, what: str) -> None:
    """Raises MiniCacheError, in the native library's words, where a call has failed."""
    if not done:
        raise MiniCacheError(last_error() or f"{what} failed without a reason")


def text(chars: Any) -> str:
    return str(ffi.string(chars).decode("utf-8", "replace"))


def read_plan(path: str) -> Any:
    """Reads a plan file and returns a handle, which own_plan() or llama_minicache_free_plan() has to free."""
    handle = lib.llama_minicache_read_plan(os.fsencode(path))
    check(handle != ffi.NULL, "llama_minicache_read_plan")
    return handle


def own_plan(handle: Any) -> Any:
    """The handle, which from here on is freed with its last reference."""
    return ffi.gc(handle, lib.llama_minicache_free_plan)


def plan_path(handle: Any) -> str:
    return os.fsdecode(ffi.string(lib.llama_minicache_plan_path(handle)))


def plan_header(handle: Any) -> bytes:
    """The header of the plan's file, as it was read."""
    n_bytes = ffi.new("size_t *")
    data = lib.llama_minicache_plan_header(handle, n_bytes)
    return bytes(ffi.buffer(data, n_bytes[0]))


@contextmanager
def observing_contexts() -> Iterator[None]:
    """Contexts that this thread makes inside merge nothing, and name their Q, K and V."""
    params = ffi.new("struct llama_minicache_params *", lib.llama_minicache_default_params())
    params.observe = True
    try:
        check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_PARAMS, params), "llama_minicache_use")
        yield
    finally:
        use_env()


def fingerprint(model: Any) -> str:
    """The fingerprint of a llama_model, of which llama_cpp gives the pointer."""
    buffer = ffi.new("char[17]")
    check(lib.llama_minicache_fingerprint(model_pointer(model), buffer), "llama_minicache_fingerprint")
    return text(buffer)


def use_off() -> None:
    """From here on, contexts that this thread makes are upstream's."""
    check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_OFF, ffi.NULL), "llama_minicache_use")


def use_env() -> None:
    """From here on, contexts that this thread makes follow LLAMA_MINICACHE, as they do at first."""
    check(lib.llama_minicache_use(lib.LLAMA_MINICACHE_USE_ENV, ffi.NULL), "llama_minicache_use")


def model_pointer(model: Any) -> Any:
    """A llama_model that a ctypes function of llama_cpp returned, as cffi takes it."""
    return ffi.cast("struct llama_model *", model)


def context_pointer(ctx: Any) -> Any:
    """A llama_context that a ctypes function of llama_cpp returned, as cffi takes it."""
    return ffi.cast("struct llama_context *", ctx)


#
# calls that reach a device: what would have ended the process is an error
#


def decode(ctx: Any, batch: Any) -> int:
    """Runs llama_decode() and waits for the device; returns its result. Context and batch are llama_cpp's."""
    return _run(lib.llama_minicache_decode_batch, ctx, batch)


def encode(ctx: Any, batch: Any) -> int:
    """Runs llama_encode() as decode() runs llama_decode()."""
    return _run(lib.llama_minicache_encode_batch, ctx, batch)


def _run(function: Any, ctx: Any, batch: Any) -> int:
    result = ffi.new("int32_t *")
    pointer = ffi.cast("struct llama_batch *", ctypes.addressof(batch))
    check(function(context_pointer(ctx), pointer, result), "the batch")
    return int(result[0])


def stop(ctx: Any, on: bool) -> None:
    """Ends the batch that another thread computes, and refuses every later one until a call with on=False."""
    check(lib.llama_minicache_stop(context_pointer(ctx), on), "llama_minicache_stop")


WHOLE_CONTEXT = -1  # in place of a sequence


def get_state(ctx: Any, seq: int = WHOLE_CONTEXT) -> bytearray:
    """The state of a sequence, or of the whole context, for set_state()."""
    size = ffi.new("size_t *")
    check(lib.llama_minicache_get_state(context_pointer(ctx), seq, ffi.NULL, 0, size), "the state")
    state = bytearray(size[0])
    check(
        lib.llama_minicache_get_state(context_pointer(ctx), seq, ffi.from_buffer(state), len(state), size),
        "the state",
    )
    if size[0] != len(state):
        raise MiniCacheError(last_error() or "llama.cpp did not give the whole state")
    return state


def set_state(ctx: Any, state: Any, seq: int = WHOLE_CONTEXT) -> bool:
    """Loads a saved state, any object of bytes. Returns False where it is refused.

    last_error() has the reason if our library refused it.
    """
    n = ffi.new("size_t *")
    buffer = ffi.from_buffer(state)
    check(lib.llama_minicache_set_state(context_pointer(ctx), seq, buffer, len(buffer), n), "the state")
    return int(n[0]) == len(buffer)


def clear(ctx: Any) -> None:
    """Empties a context's memory."""
    check(lib.llama_minicache_clear(context_pointer(ctx), True), "clearing")


# contexts that could not be freed, as their device has failed
_kept: list[Any] = []


def free_context(ctx: Any) -> bool:
    """Frees a context. Returns False where it has to be kept, with its model, because its device has failed."""
    if lib.llama_minicache_free(context_pointer(ctx)):
        return True
    _kept.append(ctx)
    return False


def free_model(model: Any) -> None:
    """Frees a model. Once a device has failed it is kept, as its weights may lie there."""
    if not _kept:
        llama_h.llama_model_free(model)

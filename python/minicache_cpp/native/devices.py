"""The devices that the loaded libraries can use, and their memory."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import cffi

from ..errors import MiniCacheError
from . import library

# of ggml-backend.h
ffi = cffi.FFI()
ffi.cdef(
    """
    size_t ggml_backend_dev_count(void);
    void * ggml_backend_dev_get(size_t index);
    const char * ggml_backend_dev_name(void * device);
    const char * ggml_backend_dev_description(void * device);
    int ggml_backend_dev_type(void * device);
    void ggml_backend_dev_memory(void * device, size_t * free, size_t * total);
    void * ggml_backend_dev_by_type(int type);
    void * ggml_backend_dev_backend_reg(void * device);
    void * ggml_backend_reg_get_proc_address(void * reg, const char * name);
    """
)
CPU, GPU = 0, 1  # GGML_BACKEND_DEVICE_TYPE_


@dataclass(frozen=True)
class Device:
    name: str  # as llama.cpp's options take it, such as CUDA0
    description: str
    free: int  # bytes, now
    total: int


def gpus() -> list[Device]:
    """The devices with a memory of their own; a build for the CPU has none."""
    lib = ffi.dlopen(str(library.load()))
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        if lib.ggml_backend_dev_type(device) != GPU:
            continue
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        lib.ggml_backend_dev_memory(device, free, total)
        name, description = (
            ffi.string(function(device)).decode("utf-8", "replace")
            for function in (lib.ggml_backend_dev_name, lib.ggml_backend_dev_description)
        )
        found.append(Device(name, description, free[0], total[0]))
    return found


def cpu_library() -> Path | None:
    """The file of the CPU kernels in use, of which there may be several; None where the system cannot tell."""
    lib = ffi.dlopen(str(library.load()))
    reg = lib.ggml_backend_dev_backend_reg(lib.ggml_backend_dev_by_type(CPU))
    function = lib.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_set_n_threads")
    return library.path_of(ctypes.c_void_p(int(ffi.cast("uintptr_t", function))))


def require_gpu() -> Device:
    """The first GPU. Raises MiniCacheError, saying what is missing, where there is none."""
    found = gpus()
    if not found:
        raise MiniCacheError(
            "there is no GPU that these libraries can use: build with CMAKE_ARGS=-DGGML_CUDA=on on a machine with one"
        )
    return found[0]

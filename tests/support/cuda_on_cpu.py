"""Devices that run the CUDA kernels on the CPU, for tests of whole models. See tests/native/cuda-on-cpu."""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from minicache_cpp.native import library
from support.contexts import Model
from support.family_caches import LoadedFamily
from support.loaded import Loaded
from support.paths import required

AnyLoaded = TypeVar("AnyLoaded", Loaded, LoadedFamily)

ALL_LAYERS = 99
GIB = 1 << 30


class Devices:
    """The backend while it is loaded. Models that were loaded before it do not use it."""

    def __init__(self, path: Path, libraries: Path) -> None:
        self.path = path
        # the directory of ggml and llama
        self.libraries = libraries
        self.library = ctypes.CDLL(str(path))

    def computed(self) -> int:
        """The number of MiniCache ops that the devices have computed so far."""
        return int(self.library.cuda_on_cpu_computed())

    def fail(self, op: int, for_good: bool = False) -> None:
        """Makes the op of this number, counted from now, fail, and with `for_good` every call after it. -1 stops it."""
        self.library.cuda_on_cpu_fail(op, for_good)

    def fail_copy(self, copy: int) -> None:
        """Makes the copy to or from a device of this number, counted from now, fail. -1 stops it."""
        self.library.cuda_on_cpu_fail_copy(copy)

    def held(self, loaded: AnyLoaded, n_gpu_layers: int = ALL_LAYERS) -> AnyLoaded:
        """Loads the model again, with its last layers and the output on the devices."""
        twin = copy.copy(loaded)
        twin.model = Model(loaded.path, n_gpu_layers)
        return twin

    @contextmanager
    def holding(self, loaded: AnyLoaded, n_gpu_layers: int = ALL_LAYERS) -> Iterator[AnyLoaded]:
        """Does so for a while."""
        twin = self.held(loaded, n_gpu_layers)
        try:
            yield twin
        finally:
            twin.model.close()


@contextmanager
def devices(count: int = 1, memory: int = 8 * GIB) -> Iterator[Devices]:
    """Loads the backend with `count` devices, cuda-on-cpu0 and so on, of `memory` bytes each."""
    libraries = library.load().parent
    if library.find(libraries, "ggml-cuda"):
        pytest.skip("a build for CUDA has functions of the same names")
    path = required(
        "MINICACHE_CUDA_ON_CPU", "libminicache-cuda-on-cpu.so, of a build with MINICACHE_TESTS=ON"
    )
    ggml_path = library.find(libraries, "ggml")
    assert ggml_path is not None
    ggml, found = ctypes.CDLL(str(ggml_path)), Devices(path, libraries)
    found.library.cuda_on_cpu_set_devices(count, ctypes.c_size_t(memory))
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    backend = ctypes.c_void_p(ggml.ggml_backend_load(os.fsencode(path)))
    assert backend
    try:
        yield found
    finally:
        found.fail(-1)
        found.fail_copy(-1)
        ggml.ggml_backend_unload(backend)

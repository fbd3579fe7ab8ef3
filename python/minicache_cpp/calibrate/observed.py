"""A context whose Q, K and V are copied as they are computed.

The library names the tensors where llama_minicache_params.observe is set, and llama.cpp's evaluation callback hands
them over.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MiniCacheError
from ..kernels import ROPES
from ..native import binding
from ..native.batch import BatchToken, TokenBatch
from ..native.binding import llama_h
from ..reading.model import NativeModel
from .rope import Rope

Floats = NDArray[np.float32]

# the names that the library gives to the tensors of a layer
NAME = re.compile(rb"minicache_([qkv])-(\d+)")
# room for the frequencies of a head, of which it has at most half as many as numbers
MOST_FREQUENCIES = 4096


class Observed:
    """The context; observing() opens one."""

    def __init__(self, n_batch: int) -> None:
        self.seen: dict[tuple[str, int], Floats] = {}
        self.failure: BaseException | None = None
        self.ctx: Any = None
        self.batch = TokenBatch(n_batch)
        self.ggml = _ggml()
        # native code keeps a pointer to the callback, so it must live as long as the context
        self.callback = llama_h.ggml_backend_sched_eval_callback(self.receive)

    def receive(self, tensor: int, ask: bool, _: object) -> bool:
        """The evaluation callback: llama.cpp asks first whether a tensor is wanted, then hands it over."""
        try:
            name = NAME.fullmatch(self.ggml.ggml_get_name(tensor))
            if name and not ask:
                data = np.empty(self.ggml.ggml_nbytes(tensor) // 4, np.float32)
                self.ggml.ggml_backend_tensor_get(tensor, data.ctypes.data, 0, data.nbytes)
                self.seen[name[1].decode(), int(name[2])] = data
            return name is not None or not ask
        except Exception as error:  # an exception must not travel through native code; read() raises it
            self.failure = error
            return False

    def rope(self, number: int) -> Rope | None:
        """How RoPE turns the K of a layer; None where Rope cannot express it, as with M-RoPE."""
        ffi = binding.ffi
        kind, n_rot = ffi.new("int32_t *"), ffi.new("int32_t *")
        freq = ffi.new("double[]", MOST_FREQUENCIES)
        pointer = binding.context_pointer(self.ctx)
        if not binding.lib.llama_minicache_get_rope(pointer, number, kind, n_rot, freq):
            return None
        return Rope(ROPES[kind[0]], tuple(freq[0 : n_rot[0] // 2]))

    def read(self, tokens: Iterable[BatchToken]) -> None:
        """Reads tokens in one step; afterwards `seen` has their Q, K and V by kind ("q", "k", "v") and layer.

        Raises MiniCacheError where the step fails.
        """
        self.seen.clear()
        batch = self.batch.fill(tokens)
        # not through the abort guard, which does not work while an evaluation callback is set
        status = llama_h.llama_decode(self.ctx, batch)
        if self.failure:
            raise self.failure
        if status:
            raise MiniCacheError(f"llama_decode failed with {status} at position {batch.pos[0]}")


def _ggml() -> Any:
    """The functions of ggml that a callback needs."""
    ggml = llama_h._lib  # the libraries that libllama is linked to are found through it
    ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    ggml.ggml_nbytes.argtypes, ggml.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    copy = ggml.ggml_backend_tensor_get
    copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    copy.restype = None
    return ggml


@contextlib.contextmanager
def observing(model: NativeModel, length: int, threads: int) -> Iterator[Observed]:
    """A context that reads chunks of up to `length` tokens in one step each; raises MiniCacheError where none opens."""
    observed = Observed(length)
    params = llama_h.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = length
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = llama_h.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cb_eval = observed.callback
    params.no_perf = True
    model.log.clear()
    with binding.observing_contexts():
        observed.ctx = llama_h.llama_init_from_model(model.model, params)
    try:
        if observed.ctx is None:
            reason = binding.last_error() or model.log.reason()
            raise MiniCacheError(f"the model cannot be observed: {reason}")
        yield observed
    finally:
        observed.batch.close()
        if observed.ctx is not None:
            binding.free_context(observed.ctx)

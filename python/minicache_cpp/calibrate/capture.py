"""Runs the model over calibration chunks and records each layer's K (after RoPE), V, and how much attention amplifies
an error in them.

The library names the tensors where llama_minicache_params.observe is set, and llama.cpp's evaluation callback hands
them over. Memory holds one chunk at a time, which is 6 bytes for each K and V value of its tokens: 192 MiB for 512
tokens of an 8B model. A chunk that is on disk already is not run again.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MiniCacheError
from ..kernels import ROPES
from ..modelfile.shape import ModelShape
from ..native import binding
from ..native.batch import BatchToken, TokenBatch
from ..native.binding import llama_h
from ..reading.model import NativeModel
from .material import Chunk
from .rope import Rope
from .samples import Samples

Floats = NDArray[np.float32]

# the names that the library gives to the tensors of a layer
NAME = re.compile(rb"minicache_([qkv])-(\d+)")
# room for the frequencies of a head, of which it has at most half as many as numbers
MOST_FREQUENCIES = 4096


class NotObservedError(MiniCacheError):
    """The model's attention does not go through llama.cpp's common path, which the library observes."""


def capture(model: NativeModel, samples: Samples, threads: int, on_chunk: Callable[[int], None]) -> None:
    """Runs the model over the chunks that `samples` does not have yet, and sets `samples.ropes`.

    Calls `on_chunk` with the number of chunks that are done, after each. Raises NotObservedError where a layer's Q, K
    or V cannot be seen, and MiniCacheError where the model cannot be run.
    """
    length = max(len(chunk.tokens) for chunk in samples.chunks)
    samples.folder.mkdir(parents=True, exist_ok=True)
    with observing(model, length, threads) as observed:
        samples.ropes = [observed.rope(number) for number in range(len(samples.shape.layers))]
        for number, chunk in enumerate(samples.chunks):
            if not samples.has(number):
                samples.write(number, observed.read(chunk, samples.shape))
            on_chunk(number + 1)


class Observed:
    """A context whose Q, K and V are copied as they are computed."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int], Floats] = {}
        self.failure: BaseException | None = None
        self.ctx: Any = None
        self.ggml = llama_h._lib  # the libraries that libllama is linked to are found through it
        self.ggml.ggml_get_name.argtypes = [ctypes.c_void_p]
        self.ggml.ggml_get_name.restype = ctypes.c_char_p
        self.ggml.ggml_nbytes.argtypes = [ctypes.c_void_p]
        self.ggml.ggml_nbytes.restype = ctypes.c_size_t
        self.ggml.ggml_backend_tensor_get.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_size_t,
            ctypes.c_size_t,
        ]
        self.ggml.ggml_backend_tensor_get.restype = None
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

    def read(self, chunk: Chunk, shape: ModelShape) -> dict[tuple[str, int], Floats]:
        """Runs a chunk; returns Q, K and V by kind ("q", "k", "v") and layer, [tokens, heads, size]."""
        n = len(chunk.tokens)
        self.seen.clear()
        binding.clear(self.ctx)
        batch = TokenBatch(n)
        tokens = (
            BatchToken(token, chunk.position + i, wanted=i == n - 1) for i, token in enumerate(chunk.tokens)
        )
        try:
            # not through the abort guard, which does not work while an evaluation callback is set
            status = llama_h.llama_decode(self.ctx, batch.fill(tokens))
        finally:
            batch.close()
        if self.failure:
            raise self.failure
        if status:
            raise MiniCacheError(f"llama_decode failed with {status} at position {chunk.position}")
        found = {}
        for number, layer in enumerate(shape.layers):
            sizes = {"q": layer.head_size_k, "k": layer.head_size_k, "v": layer.head_size_v}
            for kind, size in sizes.items() if layer.n_head_kv else ():
                if (kind, number) not in self.seen:
                    raise NotObservedError(
                        f"the {kind.upper()} of layer {number} cannot be observed in this model"
                    )
                found[kind, number] = self.seen[kind, number].reshape(n, -1, size)
        return found


@contextlib.contextmanager
def observing(model: NativeModel, length: int, threads: int) -> Iterator[Observed]:
    """A context that reads chunks of up to `length` tokens in one step each; raises MiniCacheError where none opens."""
    observed = Observed()
    params = llama_h.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = length
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = llama_h.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cb_eval = observed.callback
    params.no_perf = True
    model.log.clear()
    with binding.observing_contexts():
        observed.ctx = llama_h.llama_init_from_model(model.model, params)
    if observed.ctx is None:
        reason = binding.last_error() or model.log.reason()
        raise MiniCacheError(f"the model cannot be observed: {reason}")
    try:
        yield observed
    finally:
        binding.free_context(observed.ctx)

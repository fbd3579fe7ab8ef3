"""A context whose attention is seen, and can be changed, while it is computed.

The library names each layer's Q, K and V where llama_minicache_params.observe is set, llama.cpp names the result of
attention, and its evaluation callback hands the tensors over.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MiniCacheError
from ..host.interrupts import interrupts_afterwards
from ..kernels import ROPES
from ..native import binding
from ..native.batch import BatchToken, TokenBatch
from ..native.binding import llama_h
from ..reading.model import NativeModel
from .rope import Rope

Floats = NDArray[np.float32]

# the tensors of a layer: Q, K (both after RoPE) and V, and the result of attention before the output matrix
NAME = re.compile(rb"(minicache_q|minicache_k|minicache_v|kqv_out)-(\d+)")
KINDS = {b"minicache_q": "q", b"minicache_k": "k", b"minicache_v": "v", b"kqv_out": "o"}
# room for the frequencies of a head, of which it has at most half as many as numbers
MOST_FREQUENCIES = 4096


class Observed:
    """The context; observing() opens one.

    `change`, where it is set, is called with each layer and its attention's result, [tokens, n], which it may change.
    """

    def __init__(self, n_batch: int) -> None:
        self.seen: dict[tuple[str, int], Floats] = {}
        self.change: Callable[[int, Floats], None] | None = None
        self.wanted: Collection[str] = ()
        self.n_tokens = 0
        self.failure: Exception | None = None
        # whether Ctrl-C was pressed in this step
        self.interrupted: Callable[[], bool] = lambda: False
        self.ctx: Any = None
        self.batch = TokenBatch(n_batch)
        self.ggml = _ggml()
        # native code keeps a pointer to the callback, so it must live as long as the context
        self.callback = llama_h.ggml_backend_sched_eval_callback(self.receive)

    def receive(self, tensor: int, ask: bool, _: object) -> bool:
        """The evaluation callback: llama.cpp asks first whether a tensor is wanted, then hands it over."""
        try:
            if self.interrupted():
                return False
            name = NAME.fullmatch(self.ggml.ggml_get_name(tensor))
            kind = KINDS[name[1]] if name else ""
            wanted = kind in self.wanted or (kind == "o" and self.change is not None)
            if name and wanted and not ask:
                self._take(tensor, kind, int(name[2]))
            return wanted or not ask
        except Exception as error:  # an exception must not travel through native code; read() raises it
            self.failure = error
            return False

    def _take(self, tensor: int, kind: str, layer: int) -> None:
        data = np.empty(self.ggml.ggml_nbytes(tensor) // 4, np.float32)
        self.ggml.ggml_backend_tensor_get(tensor, data.ctypes.data, 0, data.nbytes)
        if kind in self.wanted:
            self.seen[kind, layer] = data
        if kind == "o" and self.change is not None:
            self.change(layer, data.reshape(self.n_tokens, -1))
            self.ggml.ggml_backend_tensor_set(tensor, data.ctypes.data, 0, data.nbytes)

    def rope(self, number: int) -> Rope | None:
        """How RoPE turns the K of a layer; None where Rope cannot express it, as with M-RoPE."""
        ffi = binding.ffi
        kind, n_pair = ffi.new("int32_t *"), ffi.new("int32_t *")
        freq = ffi.new("double[]", MOST_FREQUENCIES)
        pointer = binding.context_pointer(self.ctx)
        if not binding.lib.llama_minicache_get_rope(pointer, number, kind, n_pair, freq):
            return None
        return Rope(ROPES[kind[0]], tuple(freq[0 : n_pair[0]]))

    def read(self, tokens: Iterable[BatchToken], wanted: Collection[str] = ()) -> None:
        """Reads tokens in one step; afterwards `seen` has the tensors of the kinds that are wanted.

        Raises MiniCacheError where the step fails, and what `change` raised.
        """
        self.seen.clear()
        self.wanted = wanted
        batch = self.batch.fill(tokens)
        self.n_tokens = batch.n_tokens
        # not through the abort guard, which does not work while an evaluation callback is set
        with interrupts_afterwards() as self.interrupted:
            status = llama_h.llama_decode(self.ctx, batch)
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        self.batch.refuse_failure(status)

    def logits(self, n_row: int, n_vocab: int) -> Floats:
        """The logits after the wanted tokens of the last step: llama.cpp's memory, which lasts until the next one."""
        return np.ctypeslib.as_array(llama_h.llama_get_logits(self.ctx), (n_row, n_vocab))


def _ggml() -> Any:
    """The functions of ggml that a callback needs."""
    ggml = llama_h._lib  # the libraries that libllama is linked to are found through it
    ggml.ggml_get_name.argtypes, ggml.ggml_get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
    ggml.ggml_nbytes.argtypes, ggml.ggml_nbytes.restype = [ctypes.c_void_p], ctypes.c_size_t
    for copy in (ggml.ggml_backend_tensor_get, ggml.ggml_backend_tensor_set):
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
        copy.restype = None
    return ggml


@contextlib.contextmanager
def observing(
    model: NativeModel, n_ctx: int, threads: int, n_seq: int = 1, n_batch: int = 0
) -> Iterator[Observed]:
    """A context of `n_ctx` cells, which its sequences share; `n_batch`: tokens of a step, all that fit if 0.

    Raises MiniCacheError where none opens.
    """
    observed = Observed(n_batch or n_ctx)
    params = llama_h.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.kv_unified = n_ctx, n_seq, True
    params.n_batch = params.n_ubatch = n_batch or n_ctx
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = llama_h.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cb_eval = observed.callback
    params.no_perf = True
    model.log.clear()
    with binding.observing_contexts(), interrupts_afterwards():
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

"""What a model's attention reads: K and V of all layers, and how much their errors count, taken while it runs.

The library names the tensors where llama_minicache_params.observe is set, and llama.cpp's evaluation callback hands
them over. Chunk by chunk, K and V go to files as float16, so that memory holds one chunk: 6 bytes of each K and V
value of its tokens, 192 MiB for 512 tokens of an 8B model. A chunk that is on disk is not run again.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import Kind
from ..errors import MiniCacheError
from ..modelfile.shape import ModelShape
from ..native import binding
from ..native.binding import llama_h
from ..reading.model import NativeModel
from .attention_weights import Read, attention_weights
from .material import Chunk

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

NAME = re.compile(rb"minicache_([qkv])-(\d+)")
ROPES = ("none", "neighbours", "halves")  # by number, as llama_minicache_get_rope() tells them


class NotObservedError(MiniCacheError):
    """The model's attention does not go through the common path."""


@dataclass(frozen=True)
class Rope:
    """How RoPE turns the K of a layer."""

    kind: str  # which numbers turn together: none, neighbours (2i, 2i + 1), halves (i, i + n_rot/2)
    freq: tuple[float, ...] = ()  # radians per position

    @property
    def pairs(self) -> NDArray[np.int64]:
        """The two numbers that each frequency turns, [2, n]."""
        n = len(self.freq)
        numbers = np.arange(2 * n)
        return np.asarray(numbers.reshape(n, 2).T if self.kind == "neighbours" else numbers.reshape(2, n))

    def turn(self, x: Floats, positions: NDArray[np.int64]) -> Floats:
        """Rows [n, heads, d] turned by positions [n]."""
        if self.kind == "none":
            return x
        first, second = self.pairs
        angle = positions[:, None, None] * np.array(self.freq)
        z = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angle)
        turned = np.array(x, dtype=np.float32)
        turned[..., first], turned[..., second] = z.real, z.imag
        return turned

    def paired_mean(self, x: Doubles) -> Doubles:
        """The last axis, averaged over the two numbers that turn together."""
        if self.kind == "none":
            return x
        first, second = self.pairs
        mean = (x[..., first] + x[..., second]) / 2
        result = np.array(x)
        result[..., first] = result[..., second] = mean
        return result


class Samples:
    """The captured chunks, in a folder."""

    def __init__(
        self,
        folder: Path,
        shape: ModelShape,
        chunks: Sequence[Chunk],
        gains: Sequence[
            Doubles | None
        ] = (),  # of the output matrices of all layers, [n_head]; None, or none: 1
        window: int = 0,  # of the cache: so many of the latest tokens have no errors
    ) -> None:
        self.folder, self.shape, self.chunks, self.gains, self.window = folder, shape, chunks, gains, window
        self.ropes: list[Rope | None] = []  # None where a layer's K is turned in another way

    def _file(self, number: int, kind: str) -> Path:
        return self.folder / f"chunk-{number:04}.{kind}.npy"

    def has(self, number: int) -> bool:
        return self._file(number, "weights").exists()

    def write(self, number: int, seen: dict[tuple[str, int], Floats]) -> None:
        """Put away what was seen of a chunk, how errors count last: that tells that all is there."""
        rows, weights = [], []
        for number_of, layer in enumerate(self.shape.layers):
            if not layer.n_head_kv:
                continue
            q, k, v = (seen[kind, number_of] for kind in "qkv")
            rows += [k.reshape(-1), v.reshape(-1)]
            gain = self.gains[number_of] if self.gains else None
            read = attention_weights(q, k, v, gain if gain is not None else np.ones(q.shape[1]), self.window)
            weights += [one.reshape(-1) for one in (read.k, read.v, read.tokens_k, read.tokens_v)]
        _save(self._file(number, "kv"), np.concatenate(rows).astype(np.float16))
        _save(self._file(number, "weights"), np.concatenate(weights))

    @property
    def positions(self) -> NDArray[np.int64]:
        """The positions of all samples."""
        return np.concatenate([np.arange(len(chunk.tokens)) + chunk.position for chunk in self.chunks])

    def layer(self, number: int) -> tuple[Floats, Floats]:
        """K (after RoPE) and V of a layer, [tokens, heads, size]."""
        keys, values = [], []
        for index, chunk in enumerate(self.chunks):
            n = len(chunk.tokens)
            data = np.load(self._file(index, "kv"), mmap_mode="r")
            start = n * sum(layer.n_k + layer.n_v for layer in self.shape.layers[:number])
            layer = self.shape.layers[number]
            middle, end = start + n * layer.n_k, start + n * (layer.n_k + layer.n_v)
            keys.append(data[start:middle].reshape(n, layer.n_head_kv, layer.head_size_k).astype(np.float32))
            values.append(data[middle:end].reshape(n, layer.n_head_kv, layer.head_size_v).astype(np.float32))
        return np.concatenate(keys), np.concatenate(values)

    def read(self, number: int) -> Read:
        """How much errors of a layer's K and V count, over all chunks."""
        chunks = [self._read(index, number) for index in range(len(self.chunks))]
        shares = [len(chunk.tokens) for chunk in self.chunks]
        return Read(
            np.average([one.k for one in chunks], axis=0, weights=shares),
            np.average([one.v for one in chunks], axis=0, weights=shares),
            np.concatenate([one.tokens_k for one in chunks]),
            np.concatenate([one.tokens_v for one in chunks]),
        )

    def tokens(self, kind: Kind, number: int) -> Doubles:
        """How much each token of a layer counts, over the mean, [tokens, heads]."""
        read = self.read(number)
        return read.tokens_k if kind == "k" else read.tokens_v

    def _read(self, index: int, number: int) -> Read:
        n = len(self.chunks[index].tokens)
        before = sum(one.n_k + (1 + 2 * n) * one.n_head_kv for one in self.shape.layers[:number])
        layer = self.shape.layers[number]
        data = np.load(self._file(index, "weights"), mmap_mode="r")[before:]
        sizes = np.cumsum([layer.n_k, layer.n_head_kv, n * layer.n_head_kv, n * layer.n_head_kv])
        k, v, tokens_k, tokens_v = np.split(data[: sizes[-1]], sizes[:-1])
        heads = layer.n_head_kv
        return Read(k.reshape(heads, -1), np.array(v), tokens_k.reshape(n, heads), tokens_v.reshape(n, heads))


def capture(model: NativeModel, samples: Samples, threads: int, on_chunk: Callable[[int], None]) -> None:
    """Run the model over the chunks that are not there yet, and find out how RoPE turns each layer's K."""
    length = max(len(chunk.tokens) for chunk in samples.chunks)
    samples.folder.mkdir(parents=True, exist_ok=True)
    with observing(model, length, threads) as observed:
        samples.ropes = [observed.rope(number) for number in range(len(samples.shape.layers))]
        for number, chunk in enumerate(samples.chunks):
            if not samples.has(number):
                samples.write(number, observed.read(chunk, samples.shape))
            on_chunk(number + 1)


class Observed:
    """A context whose Q, K and V are seen."""

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
        # native code holds on to the callback, so it must live as long
        self.callback = llama_h.ggml_backend_sched_eval_callback(self.receive)

    def receive(self, tensor: int, ask: bool, _: object) -> bool:
        try:
            name = NAME.fullmatch(self.ggml.ggml_get_name(tensor))
            if name and not ask:
                data = np.empty(self.ggml.ggml_nbytes(tensor) // 4, np.float32)
                self.ggml.ggml_backend_tensor_get(tensor, data.ctypes.data, 0, data.nbytes)
                self.seen[name[1].decode(), int(name[2])] = data
            return name is not None or not ask
        except Exception as error:  # it must not go through native code
            self.failure = error
            return False

    def rope(self, number: int) -> Rope | None:
        ffi = binding.ffi
        kind, n_rot = ffi.new("int32_t *"), ffi.new("int32_t *")
        freq = ffi.new("double[]", 4096)
        pointer = binding.context_pointer(self.ctx)
        if not binding.lib.llama_minicache_get_rope(pointer, number, kind, n_rot, freq):
            return None
        return Rope(ROPES[kind[0]], tuple(freq[0 : n_rot[0] // 2]))

    def read(self, chunk: Chunk, shape: ModelShape) -> dict[tuple[str, int], Floats]:
        """Run a chunk; Q, K and V of every layer, [tokens, heads, size]."""
        n = len(chunk.tokens)
        self.seen.clear()
        binding.clear(self.ctx)
        batch = llama_h.llama_batch_init(n, 0, 1)
        try:
            batch.n_tokens = n
            for i, token in enumerate(chunk.tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, chunk.position + i, 1
                batch.seq_id[i][0], batch.logits[i] = 0, i == n - 1
            status = llama_h.llama_decode(self.ctx, batch)
        finally:
            llama_h.llama_batch_free(batch)
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
                        f"the {kind.upper()} of layer {number} can't be observed in this model"
                    )
                found[kind, number] = self.seen[kind, number].reshape(n, -1, size)
        return found


@contextlib.contextmanager
def observing(model: NativeModel, length: int, threads: int) -> Iterator[Observed]:
    """A context that reads chunks of up to `length` tokens in one step each."""
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
        raise MiniCacheError(f"the model can't be observed: {binding.last_error() or model.log.reason()}")
    try:
        yield observed
    finally:
        binding.free_context(observed.ctx)


def _save(path: Path, array: NDArray[Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)

"""llama.cpp models and contexts for tests, with the logits of every token and all sequence operations."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minicache_cpp import KVReport, MiniCache
from minicache_cpp.cache.context_report import read_report
from minicache_cpp.cache.contexts import creating_contexts
from minicache_cpp.modelfile.ggml_types import GGML_TYPES
from minicache_cpp.native import binding
from minicache_cpp.native.binding import llama_h as llama_cpp  # bound to the patched library
from oracle.cells import Token
from oracle.model import Config

Logits = npt.NDArray[np.float32]


class ContextRefused(Exception):
    """The library refused to make a context; the message is its reason."""


class Model:
    """A loaded model. It must outlive its contexts, and stays loaded unless close() is called."""

    def __init__(self, path: Path, n_gpu_layers: int = 0) -> None:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if handle is None:
            raise ValueError(f"{path} cannot be loaded")
        self.path, self.handle = path, handle
        self.n_layer = llama_cpp.llama_model_n_layer(handle)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(handle))

    def close(self) -> None:
        llama_cpp.llama_model_free(self.handle)


class Context:
    """A context of a model. Without `minicache` its cache is llama.cpp's own."""

    def __init__(
        self,
        model: Model,
        minicache: MiniCache | None = None,
        *,
        type_k: str = "f16",
        type_v: str = "f16",
        n_ctx: int = 256,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        unified: bool = True,
        flash_attn: int = 1,
        n_threads: int = 1,
        offload_kqv: bool = True,
        swa_full: bool = True,
        n_rs_seq: int = 0,
    ) -> None:
        self.model = model
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = max(n_ctx, n_ubatch)
        params.n_ubatch = n_ubatch
        params.n_seq_max = n_seq_max
        params.kv_unified = unified
        params.type_k, params.type_v = GGML_TYPES[type_k].number, GGML_TYPES[type_v].number
        params.flash_attn_type = flash_attn
        params.n_threads = params.n_threads_batch = n_threads
        params.offload_kqv = offload_kqv
        params.swa_full = swa_full
        params.n_rs_seq = n_rs_seq
        with creating_contexts(minicache):
            handle = llama_cpp.llama_init_from_model(model.handle, params)
            if handle is None:
                raise ContextRefused(binding.last_error())
        self.handle = handle
        self.memory = llama_cpp.llama_get_memory(handle)

    @classmethod
    def of(cls, model: Model, config: Config, **more: object) -> Context:
        """Makes the context that the oracle simulates with `config`."""
        return cls(
            model,
            minicache_of(config),
            type_k=config.type_k,
            type_v=config.type_v,
            n_ctx=config.n_cells * config.n_stream,
            n_ubatch=config.n_ubatch,
            n_seq_max=config.n_seq_max,
            unified=config.unified,
            **more,  # type: ignore[arg-type]
        )

    def close(self) -> None:
        if self.handle is not None:
            llama_cpp.llama_free(self.handle)
            self.handle = None

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def decode(self, tokens: Sequence[Token]) -> Logits:
        """Decodes one batch and returns the logits of every token, [n_tokens, n_vocab]."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i] = token.id
                batch.pos[i] = token.pos
                batch.n_seq_id[i] = 1
                batch.seq_id[i][0] = token.seq
                batch.logits[i] = True
            status = llama_cpp.llama_decode(self.handle, batch)
        finally:
            llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")
        logits = llama_cpp.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(logits, (len(tokens), self.model.n_vocab)).copy()

    def report(self) -> KVReport:
        return read_report(self.handle)

    def n_reused(self) -> int:
        """How many batches were computed with the graph of the batch before."""
        return int(llama_cpp.llama_perf_context(self.handle).n_reused)

    #
    # sequence operations
    #

    def seq_rm(self, seq: int, p0: int = -1, p1: int = -1) -> bool:
        return bool(llama_cpp.llama_memory_seq_rm(self.memory, seq, p0, p1))

    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
        llama_cpp.llama_memory_seq_cp(self.memory, source, target, p0, p1)

    def seq_keep(self, seq: int) -> None:
        llama_cpp.llama_memory_seq_keep(self.memory, seq)

    def seq_add(self, seq: int, p0: int, p1: int, delta: int) -> None:
        llama_cpp.llama_memory_seq_add(self.memory, seq, p0, p1, delta)

    def seq_div(self, seq: int, p0: int, p1: int, divisor: int) -> None:
        llama_cpp.llama_memory_seq_div(self.memory, seq, p0, p1, divisor)

    def clear(self, data: bool = True) -> None:
        llama_cpp.llama_memory_clear(self.memory, data)

    def positions(self, seq: int) -> tuple[int, int]:
        """The first and the last position of a sequence, (-1, -1) if it is empty."""
        memory = self.memory
        return llama_cpp.llama_memory_seq_pos_min(memory, seq), llama_cpp.llama_memory_seq_pos_max(
            memory, seq
        )

    #
    # state
    #

    def state(self) -> bytes:
        size = llama_cpp.llama_state_get_size(self.handle)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_get_data(self.handle, buffer, size)
        return bytes(buffer[:written])

    def restore(self, state: bytes) -> bool:
        """Returns whether the state was restored; the library returns the number of bytes read, 0 on failure."""
        return bool(llama_cpp.llama_state_set_data(self.handle, as_buffer(state), len(state)))

    def seq_state(self, seq: int) -> bytes:
        size = llama_cpp.llama_state_seq_get_size(self.handle, seq)
        buffer = (ctypes.c_uint8 * size)()
        written = llama_cpp.llama_state_seq_get_data(self.handle, buffer, size, seq)
        return bytes(buffer[:written])

    def restore_seq(self, state: bytes, seq: int) -> bool:
        return bool(llama_cpp.llama_state_seq_set_data(self.handle, as_buffer(state), len(state), seq))


def minicache_of(config: Config) -> MiniCache | None:
    """The settings that correspond to the oracle's configuration, or None if nothing is merged."""
    if config.plan:
        return MiniCache(plan=config.plan, strict=bool(config.groups))
    if not config.groups:
        return None
    return MiniCache(
        pairs=config.groups,
        t=config.t,
        retain=config.retain,
        window=config.window,
        type_k=config.type_k,
        type_v=config.type_v,
        pool_type=config.pool_type,
        strict=True,
        mode="average" if config.average else "slerp",
    )


def as_buffer(data: bytes) -> ctypes.Array[ctypes.c_uint8]:
    return (ctypes.c_uint8 * len(data)).from_buffer_copy(data)


def run(tokens: Iterable[int], first: int = 0, seq: int = 0) -> list[Token]:
    """Tokens of one sequence at consecutive positions."""
    return [Token(token, first + i, seq) for i, token in enumerate(tokens)]


def interleaved(sequences: Sequence[Sequence[int]], first: int = 0) -> list[Token]:
    """Sequences of equal length, one token of each in turn, in the order of parallel decoding."""
    return [
        Token(token, first + i, seq)
        for i, column in enumerate(zip(*sequences, strict=True))
        for seq, token in enumerate(column)
    ]


def nmse(result: npt.ArrayLike, expected: npt.ArrayLike) -> float:
    """Normalised mean squared error: the squared error over the square of what was expected."""
    result, expected = np.asarray(result, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(((result - expected) ** 2).sum() / (expected**2).sum())


@contextmanager
def captured_log() -> Iterator[list[tuple[int, str]]]:
    """Collects what llama.cpp logs: the level (2 info, 3 warning, 4 error) and the text of each message."""
    lines: list[tuple[int, str]] = []

    @llama_cpp.llama_log_callback
    def collect(level: int, text: bytes, _: object) -> None:
        lines.append((level, text.decode(errors="replace")))

    llama_cpp.llama_log_set(collect, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, _: object) -> None:
    """Drops all messages, so that the output of a failing test is its own."""


def repeated(decode: Callable[[list[Token]], Logits], tokens: Sequence[Token], chunk: int) -> Logits:
    """Decodes `tokens` in calls of `chunk` tokens each."""
    return np.concatenate([decode(list(tokens[i : i + chunk])) for i in range(0, len(tokens), chunk)])

"""`minicache bench --ops`: where the time of a token, and of a prompt's chunk, goes.

llama.cpp computes a graph in one piece, or node by node where its evaluation callback asks for it. Node by node, the
time of each is known, but the threads are started and waited for at every node; in one piece that happens once. The
difference is the cost of starting a node, assumed equal for all nodes; it is subtracted so that the nodes of a token
add up to the time of its whole graph. Both ways are measured in turn.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..cache.room import refuse_too_large
from ..cache.settings import CacheSpec
from ..host.interrupts import interrupts_afterwards
from ..host.progress import OnStep
from ..host.threads import cpu_name
from ..modelfile.gguf_file import GGUFFile
from ..native.binding import llama_h
from ..reading.context import SequenceContext
from ..reading.model import NativeModel
from .speed import N_BATCH, N_DECODE

# kinds of MiniCache's op, in the order of enum ggml_minicache_op
MINICACHE_KINDS = ("index", "attention", "merge", "pool", "encode", "attention")
GGML_KINDS = {"FLASH_ATTN_EXT": "attention", "MUL_MAT": "matrices", "SET_ROWS": "rows"}
N_TOKENS = 16  # decoded tokens that are measured in each repetition
NO_WORK = ("NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE")
KINDS = ("attention", "index", "merge", "encode", "pool", "rows", "matrices", "rest")
KEEPING = ("index", "merge", "encode", "pool")  # what storing merged layers costs, attention left out


class OpTimer:
    """The evaluation callback of a context: times every node of the graph while `single` is set."""

    def __init__(self) -> None:
        self.single = False
        self.ggml = llama_h._lib  # finds the functions of the libraries that libllama is linked to as well
        self.ggml.ggml_op_desc.argtypes = [ctypes.c_void_p]
        self.ggml.ggml_op_desc.restype = ctypes.c_char_p
        self.ggml.ggml_minicache_get_op.argtypes = [ctypes.c_void_p]
        self.ggml.ggml_minicache_get_op.restype = ctypes.c_int
        self.callback = llama_h.ggml_backend_sched_eval_callback(self.receive)
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured."""
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.nodes = dict.fromkeys(KINDS, 0)
        self.asked = 0.0  # seconds spent on asking which nodes are wanted
        self.began = self.last = 0.0

    def receive(self, tensor: int, ask: bool, _: object) -> bool:
        """What llama.cpp calls: before a node with `ask`, and after it where this returned True."""
        now = time.perf_counter()
        if not self.single:
            # llama.cpp asks about all nodes, one after the other, before it computes any
            self.asked += now - self.last if self.last else 0.0
            self.last = now
            return False
        if not ask:
            self.add(tensor, now - self.began)
        self.began = time.perf_counter()
        return True

    def add(self, tensor: int, seconds: float) -> None:
        """Counts a node's time towards its kind."""
        name = self.ggml.ggml_op_desc(tensor).decode()
        if name in NO_WORK:
            return
        kind = GGML_KINDS.get(name, "rest")
        if name == "MINICACHE":
            kind = MINICACHE_KINDS[self.ggml.ggml_minicache_get_op(tensor)]
        self.seconds[kind] += seconds
        self.nodes[kind] += 1


def measure(
    file: GGUFFile,
    contexts: Sequence[int],
    specs: Sequence[CacheSpec],
    threads: int,
    reps: int,
    copies: bool = False,
    on_step: OnStep = lambda step: None,
) -> dict[str, Any]:
    """The shares of each kind of operation, for each cache and number of tokens in it, as one JSON-ready object."""
    for spec in specs:  # one context at a time
        refuse_too_large(file, max(contexts) + N_DECODE, [spec])
    rows = []
    with NativeModel(file.path) as model:
        for n_kv in contexts:
            for spec in specs:
                on_step(f"context {n_kv}: operations of {spec.name}")
                rows += rows_of(model, spec, n_kv, threads, reps, copies)
    return {
        "model": str(file.path),
        "device": cpu_name(),
        "threads": threads,
        "reps": reps,
        "rows": rows,
    }


def rows_of(
    model: NativeModel, spec: CacheSpec, n_kv: int, threads: int, reps: int, copies: bool
) -> list[dict[str, Any]]:
    """A row for the last chunk of a prompt of n_kv tokens, and one for the token behind it."""
    timer = OpTimer()
    context = SequenceContext(model, spec, n_kv + N_DECODE, N_BATCH, threads, copies, timer.callback)
    try:
        chunk = min(N_BATCH, n_kv)
        before = n_kv - chunk
        computed = min(before, N_BATCH) if copies else before
        for start in range(0, computed, N_BATCH):
            context.evaluate(start, min(N_BATCH, computed - start))
        if computed < before:
            context.fill_by_copies(computed, before)
        prefill = sample(context, timer, before, chunk, reps)
        decode = sample(context, timer, n_kv, 1, N_TOKENS * reps)
        return [
            row(spec, n_kv, "prefill", chunk, prefill, decode.start),
            row(spec, n_kv, "decode", 1, decode, decode.start),
        ]
    finally:
        context.close()


@dataclass(frozen=True)
class Sample:
    """Medians over the repetitions, and how many nodes of each kind the graph has."""

    whole: float  # seconds of the graph in one piece
    seconds: dict[str, float]  # of each kind, node by node
    nodes: dict[str, int]

    @property
    def start(self) -> float:
        """Seconds that starting a node costs; no more than the quickest kind of node takes."""
        beyond = (sum(self.seconds.values()) - self.whole) / sum(self.nodes.values())
        least = min(self.seconds[kind] / n for kind, n in self.nodes.items() if n)
        return min(max(0.0, beyond), least)


def sample(context: SequenceContext, timer: OpTimer, at: int, n_tokens: int, times: int) -> Sample:
    """Evaluates the tokens at these positions several times; at the end they are in the cache."""
    whole: list[float] = []
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for i in range(-1, times):
        # the first time builds the graph and does not count
        for timer.single in (False, True) if i >= 0 else (False,):
            context.cut(at)
            timer.reset()
            began = time.perf_counter()
            with interrupts_afterwards():  # the timer is a callback
                context.evaluate(at, n_tokens)
            took = time.perf_counter() - began
            if i < 0:
                continue
            if not timer.single:
                whole.append(took - timer.asked)
            for kind in KINDS if timer.single else ():
                seconds[kind].append(timer.seconds[kind])
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return Sample(statistics.median(whole), medians, timer.nodes)


def row(spec: CacheSpec, n_kv: int, phase: str, n_tokens: int, found: Sample, start: float) -> dict[str, Any]:
    """One row of the table; start: seconds that starting a node costs."""
    own = {kind: max(0.0, found.seconds[kind] - start * found.nodes[kind]) for kind in KINDS}
    shares = {kind: own[kind] / sum(own.values()) for kind in KINDS}
    return {
        "case": f"{spec.name} @ {n_kv}, {phase}",
        "cache": spec.cache,
        "minicache": spec.minicache.spec() if spec.minicache else None,
        "n_kv": n_kv,
        "phase": phase,
        "tokens": n_tokens,
        "seconds": found.whole,
        "start_us": start * 1e6,
        "nodes": sum(found.nodes.values()),
        "shares": shares,
        "keeping": sum(shares[kind] for kind in KEEPING),
    }

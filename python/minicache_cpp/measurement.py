"""What caches cost on a calibration's chunks, against the model's own f16 cache; no configuration is measured twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .bench_context import BenchModel
from .calibration_text import Chunk
from .config import CacheSpec
from .divergence import Divergence, Floats, Reference, log_probabilities
from .parallel_context import ParallelContext

F16 = CacheSpec("f16", "f16")


@dataclass(frozen=True)
class Measured:
    kl: float
    top1: float


class Meter:
    """Measures configurations on chunks of several kinds, and remembers in a file what they gave.

    step: tokens of a chunk that see each other exactly; 1 as in decode.
    """

    def __init__(
        self,
        model: BenchModel,
        chunks: Mapping[str, Sequence[Chunk]],
        threads: int,
        step: int,
        memory: Path,
        on_run: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.model, self.chunks, self.threads, self.step, self.memory = model, chunks, threads, step, memory
        self.on_run = on_run
        self.references: dict[str, list[Reference]] = {}
        self.known: dict[str, list[float]] = json.loads(memory.read_text()) if memory.exists() else {}

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        for references in self.references.values():
            for reference in references:
                reference.close()

    def measure(self, spec: CacheSpec, kind: str, name: str = "") -> Measured:
        """Mean KL divergence and top-1 agreement over the second halves of the chunks of a kind."""
        key = f"{kind} {self.step} {_identity(spec)}"
        if key not in self.known:
            self.on_run(name or spec.name)
            references = self._references(kind)
            total = Divergence()
            for index, first, rows in self._read(spec, kind):
                tokens = self.chunks[kind][index].tokens
                start = first - len(tokens) // 2
                following = tokens[first + 1 : first + 1 + len(rows)]
                total.add(references[index].rows[start : start + len(rows)], rows, following)
            found = total.summary()
            self.known[key] = [found["kl_mean"], found["top1"]]
            self._save()
        return Measured(*self.known[key])

    def _references(self, kind: str) -> list[Reference]:
        if kind not in self.references:
            chunks = self.chunks[kind]
            self.references[kind] = [
                Reference(len(chunk.tokens) - len(chunk.tokens) // 2, self.model.n_vocab) for chunk in chunks
            ]
            for index, first, rows in self._read(F16, kind):
                start = first - len(chunks[index].tokens) // 2
                self.references[kind][index].rows[start : start + len(rows)] = rows
        return self.references[kind]

    def _read(self, spec: CacheSpec, kind: str) -> Iterator[tuple[int, int, Floats]]:
        """Chunk, index of a token, and log-probabilities after it and those that follow, of all second halves."""
        with ParallelContext(self.model, spec, self.chunks[kind], self.step, self.threads) as context:
            for index, first, logits in context.read():
                yield index, first, log_probabilities(logits)

    def _save(self) -> None:
        part = self.memory.with_name(f"{self.memory.name}.{os.getpid()}.part")
        part.write_text(json.dumps(self.known))
        part.replace(self.memory)


def _identity(spec: CacheSpec) -> str:
    """Equal for configurations that hold the cache in the same way."""
    if spec.minicache is not None and spec.minicache.plan is not None:
        return hashlib.sha256(Path(spec.minicache.plan).read_bytes()).hexdigest()
    return spec.name

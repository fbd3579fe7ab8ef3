"""Measures what caches lose on a calibration's chunks, against the model's own f16 cache, each configuration once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..cache.settings import F16, CacheSpec
from ..host.files import read_json, write_json
from ..reading.divergence import Floats, Reference, kl_divergence, log_probabilities
from ..reading.model import NativeModel
from .material import Chunk
from .parallel_context import ParallelContext

ERROR_TOKENS = 16


@dataclass(frozen=True)
class Measured:
    # mean KL divergence from the f16 cache, in nats per token
    kl: float
    # the share of tokens after which both caches make the same token the most likely one
    top1: float
    # the standard error of kl, over stretches of ERROR_TOKENS tokens, as neighbouring tokens are alike
    kl_error: float = 0.0

    @property
    def kl_most(self) -> float:
        """kl plus its standard error."""
        return self.kl + self.kl_error


class Meter:
    """Measures configurations on chunks of several kinds, and keeps the results in the file `memory`.

    While the model is run, `on_run` is called with the name of the configuration and the share of the text that it has
    read.
    """

    def __init__(
        self,
        model: NativeModel,
        chunks: Mapping[str, Sequence[Chunk]],
        threads: int,
        memory: Path,
        on_run: Callable[[str, float], None] = lambda name, share: None,
    ) -> None:
        self.model, self.chunks, self.threads, self.memory = model, chunks, threads, memory
        # kinds of the same chunks are measured once, under the name of the first
        self.same = {kind: next(one for one in chunks if chunks[one] == chunks[kind]) for kind in chunks}
        self.on_run = on_run
        self.references: dict[str, list[Reference]] = {}
        self.known: dict[str, list[float]] = read_json(memory, {})

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        for references in self.references.values():
            for reference in references:
                reference.close()

    def measure(self, spec: CacheSpec, kind: str, name: str = "") -> Measured:
        """The loss of a configuration on the chunks of a kind, over the tokens from each chunk's `first` on."""
        if spec == F16:
            return Measured(kl=0.0, top1=1.0)
        kind = self.same[kind]
        key = f"{kind} {_identity(spec)}"
        if key not in self.known:
            references = self._references(kind)
            kl: list[list[float]] = [[] for _ in references]
            same: list[bool] = []
            for numbers, at, rows in self._read(spec, kind, name or spec.name):
                reference = np.stack(
                    [references[number].rows[self._row(kind, number, at)] for number in numbers]
                )
                for number, one in zip(numbers, kl_divergence(reference, rows), strict=True):
                    kl[number].append(float(one))
                same += (reference.argmax(axis=1) == rows.argmax(axis=1)).tolist()
            mean = float(np.mean(np.concatenate([np.array(one) for one in kl])))
            self.known[key] = [mean, float(np.mean(same)), standard_error(kl)]
            write_json(self.memory, self.known)
        return Measured(*self.known[key])

    def _references(self, kind: str) -> list[Reference]:
        if kind not in self.references:
            chunks = self.chunks[kind]
            self.references[kind] = [
                Reference(len(chunk.tokens) - chunk.first, self.model.n_vocab) for chunk in chunks
            ]
            for numbers, at, rows in self._read(F16, kind, "f16, the reference"):
                for number, row in zip(numbers, rows, strict=True):
                    self.references[kind][number].rows[self._row(kind, number, at)] = row
        return self.references[kind]

    def _row(self, kind: str, number: int, at: int) -> int:
        """The row in the reference of chunk `number` for its token `at`."""
        return at - self.chunks[kind][number].first

    def _read(self, spec: CacheSpec, kind: str, name: str) -> Iterator[tuple[list[int], int, Floats]]:
        """Yields (chunk numbers, index of a token, log-probabilities after it, [chunks, n_vocab])."""
        with ParallelContext(self.model, spec, self.chunks[kind], self.threads) as context:
            for numbers, at, logits in context.read(lambda share: self.on_run(name, share)):
                yield numbers, at, log_probabilities(logits)


def standard_error(texts: Sequence[Sequence[float]]) -> float:
    """The standard error of the mean of all values, from the means of stretches of neighbouring ones."""
    means = [
        float(np.mean(values[begin : begin + ERROR_TOKENS]))
        for values in texts
        for begin in range(0, len(values), ERROR_TOKENS)
    ]
    return float(np.std(means, ddof=1) / len(means) ** 0.5) if len(means) > 1 else 0.0


def _identity(spec: CacheSpec) -> str:
    """The same for configurations that keep the cache in the same way; plans are compared by content, not by path."""
    if spec.plan_file is not None:
        return hashlib.sha256(spec.plan_file.path.read_bytes()).hexdigest()
    return spec.name

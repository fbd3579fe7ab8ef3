"""What KV caches cost in quality, measured against the model's own f16 cache on the same tokens.

Chunk by chunk, the f16 cache reads first, and its distributions over the second half of the chunk, where most of
the context is in the cache, are kept in a temporary file. Then each configuration reads the same tokens at the
same positions, one context at a time.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache.report import KVReport
from ..cache.room import refuse_too_large
from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..host.units import mib
from ..modelfile.gguf_file import GGUFFile
from ..modelfile.shape import model_shape
from ..reading.divergence import Divergence, Reference, log_probabilities
from ..reading.model import NativeModel
from ..reading.scored_context import ScoredContext
from ..text.vocabulary import Vocabulary
from . import facts

F16 = CacheSpec("f16", "f16")
MOST_CHUNKS = 4  # where nobody says how many
# these have one learned vector for each position, and none beyond those
LEARNED_POSITIONS = ("gpt2", "starcoder", "mpt")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What is to be measured; `recall` is None where it is left out, and empty for distances that fit."""

    contexts: Sequence[int]
    offsets: Sequence[int]
    specs: Sequence[CacheSpec]
    ubatch: int = 1  # tokens read at a time
    prompt_ubatch: int = 64  # the same where facts are told and asked for
    chunks: int | None = None
    recall: Sequence[int] | None = ()
    rounds: int = 4
    threads: int = 1
    gpu_layers: int = 0

    def distances(self, n_ctx: int) -> list[int]:
        if self.recall is None:
            return []
        # with room for the facts and the question within the context
        return list(self.recall) or [max(1, n_ctx // 4), max(1, 3 * n_ctx // 4)]


@dataclass
class Material:
    """The text as tokens, cut up for what is measured; no weights are needed for it."""

    n_vocab: int
    chunks: dict[int, list[list[int]]] = field(default_factory=dict)  # by context
    tasks: dict[int, list[facts.RecallTask]] = field(default_factory=dict)  # by distance

    def n_ctx(self, distance: int) -> int:
        return max(task.n_tokens for task in self.tasks[distance])


def prepare(path: Path, text: str, settings: Settings) -> Material:
    """Make the text into tokens, and see whether there are enough of them."""
    n_bytes = len(text.encode("utf-8"))
    for n_ctx in settings.contexts:
        refuse_short_text(n_bytes, "bytes", n_ctx, settings.chunks)
    with Vocabulary(path) as vocabulary:
        tokens = vocabulary.tokenize(text)
        material = Material(vocabulary.size)
        for n_ctx in settings.contexts:
            refuse_short_text(len(tokens), "tokens", n_ctx, settings.chunks)
            n_chunks = settings.chunks or min(MOST_CHUNKS, len(tokens) // n_ctx)
            parts = spread(tokens, n_ctx, n_chunks)
            material.chunks[n_ctx] = [vocabulary.begun(part)[:n_ctx] for part in parts]
        template = vocabulary.chat_template()
        for distance in sorted({one for n_ctx in settings.contexts for one in settings.distances(n_ctx)}):
            material.tasks[distance] = facts.make_tasks(
                vocabulary, template, tokens, distance, settings.rounds
            )
    return material


def refuse_short_text(n: int, unit: str, n_ctx: int, chunks: int | None) -> None:
    needed = n_ctx * (chunks or 1)
    if n < needed:
        raise MiniCacheError(
            f"the text has {n} {unit}, too few for {chunks or 1} x {n_ctx} tokens; "
            "give more --text, a smaller --ctx, or fewer --chunks"
        )


def spread(tokens: list[int], n_ctx: int, n_chunks: int) -> list[list[int]]:
    """Chunks that don't overlap, from all over the text."""
    step = (len(tokens) - n_ctx) // max(1, n_chunks - 1)
    return [tokens[i * step : i * step + n_ctx] for i in range(n_chunks)]


def check_positions(file: GGUFFile, settings: Settings) -> list[str]:
    """Notes on positions the model was not trained for; an error where it has none there."""
    trained = model_shape(file).n_ctx_train
    notes = []
    for n_ctx, offset in runs(settings):
        if trained and offset + n_ctx > trained:
            if file.architecture in LEARNED_POSITIONS:
                raise MiniCacheError(
                    f"this model has {trained} positions, and a context of {n_ctx} from position {offset} "
                    f"needs {offset + n_ctx}; take a smaller --ctx or --pos-offset"
                )
            notes.append(
                f"positions {offset} to {offset + n_ctx - 1} go beyond the {trained} the model was trained "
                "for, and so does its f16 cache"
            )
    return notes


def check_room(file: GGUFFile, material: Material, settings: Settings) -> None:
    """Refuse what memory or the temporary folder can't hold, before anything is loaded."""
    largest = max([*settings.contexts, *map(material.n_ctx, material.tasks)])
    # one context at a time, none of them larger than f16's
    refuse_too_large(file, largest, [F16], settings.gpu_layers)
    needed = max(Reference.size(n_ctx - n_ctx // 2, material.n_vocab) for n_ctx in settings.contexts)
    folder = tempfile.gettempdir()
    if needed > (free := shutil.disk_usage(folder).free):
        raise MiniCacheError(
            f"the reference takes {mib(needed)} on disk, and {folder} has {mib(free)} free; "
            "take a smaller --ctx, or set TMPDIR to another folder"
        )


def runs(settings: Settings) -> list[tuple[int, int]]:
    """(context, first position) of each table."""
    return [(n_ctx, offset) for n_ctx in settings.contexts for offset in settings.offsets]


def measure(
    file: GGUFFile, material: Material, settings: Settings, on_progress: Progress = lambda text: None
) -> list[dict[str, Any]]:
    """One JSON-ready object for each context and first position."""
    recalled: dict[tuple[str, int, int], tuple[int, int]] = {}  # the same at every context
    found = []
    with NativeModel(file.path, settings.gpu_layers) as model:
        for n_ctx, offset in runs(settings):
            told = Told(on_progress, f"context {n_ctx}, positions from {offset}: ")
            bench = Bench(model, settings, offset, told)
            chunks = material.chunks[n_ctx]
            rows = bench.divergences(chunks, n_ctx)
            for spec, row in zip(settings.specs, rows, strict=True):
                distances = settings.distances(n_ctx)
                for distance in distances:
                    key = (spec.name, distance, offset)
                    if key not in recalled:
                        recalled[key] = bench.recall(spec, material, distance)
                row.update(recall_keys({one: recalled[spec.name, one, offset] for one in distances}))
            found.append(
                {
                    "model": str(file.path),
                    "context": n_ctx,
                    "tokens": sum(len(chunk) - len(chunk) // 2 for chunk in chunks),
                    "pos_offset": offset,
                    "ubatch": settings.ubatch,
                    "prompt_ubatch": settings.prompt_ubatch,
                    "chunks": len(chunks),
                    "threads": settings.threads,
                    "rows": rows,
                }
            )
    return found


@dataclass(frozen=True)
class Told:
    """Progress, with what it is about before it."""

    progress: Progress
    before: str

    def __call__(self, text: str) -> None:
        self.progress(self.before + text)


@dataclass(frozen=True)
class Bench:
    """One model at one first position."""

    model: NativeModel
    settings: Settings
    offset: int
    told: Progress

    def opened(self, spec: CacheSpec, n_ctx: int, ubatch: int = 0) -> ScoredContext:
        return ScoredContext(self.model, spec, n_ctx, ubatch or self.settings.ubatch, self.settings.threads)

    def divergences(self, chunks: list[list[int]], n_ctx: int) -> list[dict[str, Any]]:
        """A row for each configuration: what it allocates, and how far it is from the f16 cache."""
        sums = [Divergence() for _ in self.settings.specs]
        reports: list[KVReport] = []
        for number, tokens in enumerate(chunks, 1):
            where = f"chunk {number} of {len(chunks)}, "
            with contextlib.ExitStack() as stack:
                reference = Reference(len(tokens) - len(tokens) // 2, self.model.n_vocab)
                stack.callback(reference.close)
                self.told(f"{where}the f16 reference")
                with self.opened(F16, n_ctx) as context:
                    for at, ours in scored(context, tokens, self.offset):
                        reference.rows[at : at + len(ours)] = ours
                for spec, total in zip(self.settings.specs, sums, strict=True):
                    self.told(where + spec.name)
                    with self.opened(spec, n_ctx) as context:
                        if number == 1:
                            reports.append(context.report())
                        for at, ours in scored(context, tokens, self.offset):
                            first = len(tokens) // 2 + at + 1
                            following = tokens[first : first + len(ours)]
                            total.add(reference.rows[at : at + len(ours)], ours, following)
        return [
            {"name": spec.name, **size_keys(report), **total.summary(), "note": report.note}
            for spec, report, total in zip(self.settings.specs, reports, sums, strict=True)
        ]

    def recall(self, spec: CacheSpec, material: Material, distance: int) -> tuple[int, int]:
        self.told(f"recall over {distance} tokens, {spec.name}")
        with self.opened(spec, material.n_ctx(distance), self.settings.prompt_ubatch) as context:
            return facts.recall(context, material.tasks[distance], self.offset)


def scored(context: ScoredContext, tokens: list[int], offset: int) -> Iterator[tuple[int, Any]]:
    """(row, log-probabilities from this row on) of the second half of a chunk."""
    half = len(tokens) // 2
    for index, logits in context.decode(tokens, offset, half):
        yield index - half, log_probabilities(logits)


def size_keys(report: KVReport) -> dict[str, Any]:
    return {
        "bytes": report.bytes,
        "fixed_bytes": report.fixed_bytes,
        "bytes_per_token": (report.bytes - report.fixed_bytes) / (report.n_cells * report.n_stream),
        "ratio": report.ratio,
        "total_ratio": report.total_ratio,
        "bits_per_value": 16 / report.ratio,  # of all K and V values of a token
    }


def recall_keys(answers: dict[int, tuple[int, int]]) -> dict[str, Any]:
    right, asked = (sum(column) for column in zip(*answers.values(), strict=True)) if answers else (0, 0)
    share = right / asked if asked else None
    return {
        "recall": share,
        "recall_stderr": (share * (1 - share) / asked) ** 0.5 if share is not None else None,
        "recall_asked": asked,
        "recall_by_distance": {str(distance): good / n for distance, (good, n) in answers.items()},
    }

"""What KV caches cost in quality, measured against the model's own f16 cache on the same tokens.

Chunk by chunk, the f16 cache reads first. Its distributions over the scored tokens (by default the second half of the
chunk, where most of the context is in the cache) are kept in a temporary file. Then the same cache reads the chunk
without flash attention, which changes nothing but the order of sums and their roundings: what that costs is the floor.
Then each configuration reads the same tokens at the same positions, one context at a time.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..cache.report import KVReport
from ..cache.room import refuse_too_large
from ..cache.settings import F16, CacheSpec
from ..errors import MiniCacheError
from ..host.progress import OnStep
from ..host.units import mib
from ..modelfile.gguf_file import GGUFFile
from ..native.model_shape import model_shape
from ..options import check_numbers
from ..reading.divergence import Reference, log_probabilities
from ..reading.model import NativeModel
from ..reading.scored_context import ScoredContext
from .losses import Losses
from .material import Material
from .settings import Settings

# these have one learned vector for each position, and none beyond those
LEARNED_POSITIONS = ("gpt2", "starcoder", "mpt")


def check_positions(file: GGUFFile, settings: Settings) -> list[str]:
    """Notes on positions that the model was not trained for; MiniCacheError where it has no such positions."""
    trained = model_shape(file).n_ctx_train
    notes = []
    for n_ctx, offset in settings.runs():
        check_numbers("the last position", [offset + n_ctx - 1], 0)
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
    """Refuse what memory or the temporary folder cannot hold, before anything is loaded."""
    # one context at a time, none of them larger than f16's
    refuse_too_large(file, max(settings.contexts), [F16], settings.gpu_layers)
    needed = max(
        Reference.size(n_ctx - settings.scored_from(n_ctx), material.n_vocab) for n_ctx in settings.contexts
    )
    folder = tempfile.gettempdir()
    if needed > (free := shutil.disk_usage(folder).free):
        raise MiniCacheError(
            f"the reference takes {mib(needed)} on disk, and {folder} has {mib(free)} free; "
            "take a smaller --ctx, or set TMPDIR to another folder"
        )


def measure(
    file: GGUFFile, material: Material, settings: Settings, on_step: OnStep = lambda step: None
) -> list[dict[str, Any]]:
    """One JSON-ready object for each context and first position, with a row for each cache (docs/evaluation.md)."""
    found = []
    with NativeModel(file.path, settings.gpu_layers) as model:
        for n_ctx, offset in settings.runs():
            run = Run(model, settings, n_ctx, offset, on_step)
            chunks = material.chunks[n_ctx]
            floor, rows = run.losses(chunks)
            found.append(
                {
                    "model": str(file.path),
                    "context": n_ctx,
                    "tokens": sum(len(chunk) - settings.scored_from(len(chunk)) for chunk in chunks),
                    "score": "all" if settings.score_all else "second-half",
                    "pos_offset": offset,
                    "ubatch": settings.ubatch,
                    "chunks": len(chunks),
                    "threads": settings.threads,
                    "floor": floor,
                    "rows": rows,
                }
            )
    return found


@dataclass(frozen=True)
class Run:
    """One model at one context and first position."""

    model: NativeModel
    settings: Settings
    n_ctx: int
    offset: int
    on_step: OnStep

    def step(self, text: str) -> None:
        self.on_step(f"context {self.n_ctx}, positions from {self.offset}: {text}")

    def opened(self, spec: CacheSpec, n_ctx: int, ubatch: int, flash_attention: bool = True) -> ScoredContext:
        return ScoredContext(
            self.model, spec, n_ctx, ubatch, self.settings.threads, flash_attention=flash_attention
        )

    def losses(self, chunks: list[list[int]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What arithmetic alone costs, and a row for each configuration: what it allocates, and what it loses."""
        specs = self.settings.specs
        floor, found = Losses(), [Losses() for _ in specs]
        reports: list[KVReport] = []
        for number, tokens in enumerate(chunks, 1):
            where = f"chunk {number} of {len(chunks)}, "
            first = self.settings.scored_from(len(tokens))
            with contextlib.ExitStack() as stack:
                reference = Reference(len(tokens) - first, self.model.n_vocab)
                stack.callback(reference.close)
                self.step(f"{where}the f16 reference")
                with self.opened(F16, self.n_ctx, self.settings.ubatch) as context:
                    for at, ours in self.scored(context, tokens):
                        reference.rows[at - first : at - first + len(ours)] = ours
                self.step(f"{where}the floor")
                with self.opened(F16, self.n_ctx, self.settings.ubatch, flash_attention=False) as context:
                    self.compare(context, tokens, reference, floor)
                for spec, losses in zip(specs, found, strict=True):
                    self.step(where + spec.name)
                    with self.opened(spec, self.n_ctx, self.settings.ubatch) as context:
                        if number == 1:
                            reports.append(context.report())
                        self.compare(context, tokens, reference, losses)
        return floor.summary(floor), [
            {"name": spec.name, **size_keys(report), **losses.summary(floor), "note": report.note}
            for spec, report, losses in zip(specs, reports, found, strict=True)
        ]

    def compare(
        self, context: ScoredContext, tokens: list[int], reference: Reference, losses: Losses
    ) -> None:
        """Read a chunk, and add how it differs from the reference."""
        first = self.settings.scored_from(len(tokens))
        for at, ours in self.scored(context, tokens):
            following = tokens[at + 1 : at + 1 + len(ours)]
            losses.add(reference.rows[at - first : at - first + len(ours)], ours, following, at)

    def scored(self, context: ScoredContext, tokens: list[int]) -> Iterator[tuple[int, Any]]:
        """(index of a token, log-probabilities after it and after those that follow it) of the scored tokens."""
        for at, logits in context.decode(tokens, self.offset, self.settings.scored_from(len(tokens))):
            yield at, log_probabilities(logits)


def size_keys(report: KVReport) -> dict[str, Any]:
    """What a cache takes, as keys of a row."""
    return {
        "bytes": report.bytes,
        "fixed_bytes": report.fixed_bytes,
        # a model whose cache does not grow has no cells
        "bytes_per_token": (report.bytes - report.fixed_bytes) / max(1, report.n_cells * report.n_stream),
        "ratio": report.ratio,
        "total_ratio": report.total_ratio,
        "bits_per_value": 16 / report.ratio,  # of all K and V values of a token
    }

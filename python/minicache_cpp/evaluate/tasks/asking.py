"""Puts tasks to each of several caches, and compares the answers with those of the f16 cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...cache.report import KVReport
from ...cache.settings import F16, CacheSpec
from ...host.progress import OnStep
from ...reading.text_model import TextModel
from ..evaluation import size_keys
from .kind import Reply
from .reader import ModelReader
from .score import summary
from .settings import TaskSettings
from .task import Task


def measure(
    model: Path, tasks: Sequence[Task], settings: TaskSettings, on_step: OnStep = lambda step: None
) -> list[dict[str, Any]]:
    """A JSON-ready row for each cache and task (docs/evaluation.md)."""
    f16: dict[int, list[Reply]] = {}
    rows = []
    # f16 first: the others are compared with it
    for spec in sorted(settings.specs, key=lambda spec: spec != F16):
        for n_ctx in sorted({task.n_ctx for task in tasks}):
            with TextModel(
                model, spec, n_ctx, settings.ubatch, settings.threads, settings.gpu_layers
            ) as text_model:
                report, reader = text_model.report(), ModelReader(text_model)
                for number, task in enumerate(tasks):
                    if task.n_ctx == n_ctx:
                        replies = answers(reader, task, spec, on_step)
                        f16.setdefault(number, replies)
                        rows.append((number, row_of(spec, report, task, replies, f16[number])))
    rows.sort(key=lambda numbered: numbered[0])
    return [row for _, row in rows]


def answers(reader: ModelReader, task: Task, spec: CacheSpec, on_step: OnStep) -> list[Reply]:
    """What a cache answers to each item of a task."""
    where = "" if task.depth is None else f" at {task.n_ctx} tokens, depth {task.depth:g}"
    found = []
    for number, (_, item) in enumerate(task.items, 1):
        on_step(f"{spec.name}: {task.name}{where}, {number} of {len(task.items)}")
        found.append(task.kind.ask(reader, item, task.examples))
    return found


def row_of(
    spec: CacheSpec, report: KVReport, task: Task, replies: Sequence[Reply], f16: Sequence[Reply]
) -> dict[str, Any]:
    """What a cache takes and how it answered a task, with all its items."""
    items = [
        {"item": place, "scores": reply.scores, "answers": reply.answers, **reply.details}
        for (place, _), reply in zip(task.items, replies, strict=True)
    ]
    return {
        "name": spec.name,
        "task": task.name,
        "kind": task.kind.name,
        "context": task.n_ctx,
        "depth": task.depth,
        "asked": len(items),
        **size_keys(report),
        "metrics": summary(task.kind.metrics, replies, f16),
        "items": items,
        "note": report.note,
    }

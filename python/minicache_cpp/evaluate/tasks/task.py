"""The tasks of a run: items from files, and items that are built from a text."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import MiniCacheError
from ...text.vocabulary import Vocabulary
from .babi import Stories, Story
from .files import TaskFile, read_task
from .haystack import Haystack
from .kind import Kind
from .reader import Measure
from .registry import RETRIEVALS
from .retrieval import Completion, Retrieval
from .settings import DEFAULT_ITEMS, TaskSettings

CELLS = 256  # a context is a multiple of them


@dataclass(frozen=True)
class Task:
    """Items that are put to a model one after the other, in a context of n_ctx tokens."""

    name: str
    kind: Kind
    items: list[tuple[str, Any]]  # with their places in the file, or their numbers
    examples: list[Any]
    n_ctx: int
    depth: float | None = None  # of a retrieval


def prepare(model: Path, text_of: Callable[[], str], settings: TaskSettings) -> list[Task]:
    """All tasks; needs no weights. text_of() is called where a retrieval needs a text.

    Raises MiniCacheError where a file cannot be read, or a context or the text is too small.
    """
    files = [read_task(path) for path in settings.files]
    stories = [one for file in files if isinstance(file.kind, Stories) for _, one in file.items]
    retrievals = [_retrieval(name, stories) for name in settings.retrievals]
    if any(one.name == "babi" for one in retrievals):
        # the stories are for the retrieval then
        files = [file for file in files if not isinstance(file.kind, Stories)]
    with Vocabulary(model) as vocabulary:
        tasks = [_from_file(vocabulary, file, settings) for file in files]
        if retrievals:
            haystack = Haystack(vocabulary, text_of())
            tasks += [
                _from_text(haystack, one, n_ctx, depth, settings.limit or DEFAULT_ITEMS)
                for one in retrievals
                for n_ctx in settings.contexts
                for depth in settings.depths
            ]
    return tasks


def _retrieval(name: str, stories: Sequence[Story]) -> Retrieval:
    if name == "babi" and not stories:
        raise MiniCacheError("--retrieve babi hides bAbI's stories; give their files with --task")
    return RETRIEVALS[name](stories)


def _from_file(vocabulary: Vocabulary, file: TaskFile, settings: TaskSettings) -> Task:
    examples = [item for _, item in file.items[: settings.shots]]
    items = file.items[settings.shots :][: settings.limit]
    if not items:
        raise MiniCacheError(
            f"{file.name} has {len(file.items)} items, and the first {settings.shots} are examples; "
            "take fewer --shots"
        )
    measure = Measure(vocabulary)
    for _, item in items:
        file.kind.ask(measure, item, examples)
    n_ctx = -(-measure.n_ctx // CELLS) * CELLS
    return Task(file.name, file.kind, items, examples, n_ctx)


def _from_text(haystack: Haystack, retrieval: Retrieval, n_ctx: int, depth: float, n_items: int) -> Task:
    # every cache, and every depth, gets the same parts of the text
    rng = random.Random(f"{retrieval.name} {n_ctx}")
    items = []
    for number in range(1, n_items + 1):
        items.append((f"item {number}", haystack.bury(retrieval.plant(rng, depth), n_ctx, rng)))
    return Task(retrieval.name, Completion(retrieval.name), items, [], n_ctx, depth)

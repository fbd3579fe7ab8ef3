"""What a kind of task is: how its items look in a file, how one is put to a model, and how the answer is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ...errors import MiniCacheError
from ...text.chat_template import ChatTemplate


class BadItem(MiniCacheError):
    """An item lacks what its kind needs; the message says what, and the reader of the file adds where."""


@dataclass(frozen=True)
class Reply:
    """What a model answered to one item."""

    # by metric, each in [0, 1]
    scores: dict[str, float]
    # by metric, what is compared with the answer that the f16 cache gave; a metric without an answer is left out
    answers: dict[str, int | str] = field(default_factory=dict)
    # what else --json has of the item
    details: dict[str, Any] = field(default_factory=dict)


class Reader(Protocol):
    """A model with one cache, to which items are put."""

    template: ChatTemplate

    def likelihoods(self, endings: Sequence[tuple[str, str]]) -> list[float]:
        """The log-likelihood in nats of each second text after the first text beside it."""
        ...

    def complete(self, prompt: str, n_most: int, stops: Sequence[str] = ()) -> str:
        """The greedy continuation of a text, up to one of `stops` or `n_most` tokens."""
        ...


class Kind(Protocol):
    """A kind of task. Only the kind itself looks into its items."""

    name: str
    metrics: tuple[str, ...]

    def ask(self, reader: Reader, item: Any, examples: Sequence[Any]) -> Reply:
        """Put an item to a model, after examples with their answers."""
        ...


class FileKind(Kind, Protocol):
    """A kind whose items are read from files, a record each."""

    def recognises(self, record: Mapping[str, Any]) -> bool:
        """Whether a file whose first record this is holds items of this kind."""
        ...

    def parse(self, record: Mapping[str, Any]) -> Any:
        """The item of a record; raises BadItem."""
        ...


def text_of(record: Mapping[str, Any], key: str) -> str:
    """A text of a record; BadItem where it is missing or empty."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise BadItem(f"{key!r} is not a text")
    return value.strip()


def likeliest(values: Sequence[float]) -> int:
    """The index of the largest value, the first of several."""
    return max(range(len(values)), key=values.__getitem__)

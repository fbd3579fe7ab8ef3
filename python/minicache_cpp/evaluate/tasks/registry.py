"""The kinds of task there are. docs/evaluation.md says how to add one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .babi import BuriedStories, Stories, Story
from .blank import Blank
from .choices import MultipleChoice
from .gsm8k import WordProblems
from .kind import FileKind
from .needle import Needles
from .retrieval import Retrieval
from .truthfulqa import TruthfulQA
from .variables import Variables

# a file is of the first of these kinds that recognises its first record
FILE_KINDS: tuple[FileKind, ...] = (Blank(), MultipleChoice(), TruthfulQA(), WordProblems(), Stories())

# makes a kind of retrieval from the stories that were given, which only one of them needs
RETRIEVALS: dict[str, Callable[[Sequence[Story]], Retrieval]] = {
    "needle": lambda stories: Needles("needle", 1),
    "needles": lambda stories: Needles("needles", 4),
    "variables": lambda stories: Variables(),
    "babi": BuriedStories,
}

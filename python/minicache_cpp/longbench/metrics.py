"""LongBench's metrics (Bai et al. 2023, arXiv 2308.14508): each compares an answer with one that is right.

Each returns a share in [0, 1]. Two differ from LongBench's own program, which uses packages for them: ROUGE-L is the
plain one, over whole texts, and Chinese texts are compared by characters instead of words.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

Metric = Callable[[str, str, Sequence[str]], float]  # answer, right answer, all classes

ARTICLES = ("a", "an", "the")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    return [word for word in text.lower().translate(PUNCTUATION).split() if word not in ARTICLES]


def characters(text: str) -> list[str]:
    """Letters and digits, for languages without spaces."""
    return [character for character in text.lower() if character.isalnum()]


def f1(found: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the parts that both have, in any order."""
    return _f1(sum((Counter(found) & Counter(right)).values()), len(found), len(right))


def rouge_l(found: Sequence[str], right: Sequence[str]) -> float:
    """F1 of the longest common subsequence (ROUGE-L; Lin 2004)."""
    # of the longest common subsequence of the parts of `found` seen so far and the first i parts of `right`
    lengths = [0] * (len(right) + 1)
    for part in found:
        before = 0
        for i, other in enumerate(right, 1):
            before, lengths[i] = lengths[i], before + 1 if part == other else max(lengths[i], lengths[i - 1])
    return _f1(lengths[-1], len(found), len(right))


def _f1(n_common: int, n_found: int, n_right: int) -> float:
    return 2 * n_common / (n_found + n_right) if n_common else 0.0


def question_f1(answer: str, right: str, _: Sequence[str]) -> float:
    """F1 of words."""
    return f1(words(answer), words(right))


def question_f1_zh(answer: str, right: str, _: Sequence[str]) -> float:
    """F1 of characters."""
    return f1(characters(answer), characters(right))


def summary(answer: str, right: str, _: Sequence[str]) -> float:
    """ROUGE-L of words."""
    return rouge_l(answer.split(), right.split())


def summary_zh(answer: str, right: str, _: Sequence[str]) -> float:
    """ROUGE-L of characters."""
    return rouge_l(characters(answer), characters(right))


def classification(answer: str, right: str, classes: Sequence[str]) -> float:
    """1 / the number of classes that the answer names, if the right one is among them; 0 otherwise.

    Names that are part of the right name do not count.
    """
    named = [name for name in classes if name in answer and not (name in right and name != right)]
    return 1 / len(named) if right in named else 0.0


def number(answer: str, right: str, _: Sequence[str]) -> float:
    """The share of the right number among all numbers in the answer."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(right.strip()) / len(numbers) if numbers else 0.0


def paragraph(answer: str, right: str, classes: Sequence[str]) -> float:
    """As number(), for a right answer such as "Paragraph 7"."""
    wanted = re.search(r"\d+", right)
    return number(answer, wanted[0], classes) if wanted else 0.0


def code_line(answer: str, right: str, _: Sequence[str]) -> float:
    """The similarity of the first line of code and the right one; comments and fences are skipped."""
    lines = answer.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, line, right).ratio()) / 100


def best(metric: Metric, answer: str, rights: Sequence[str], classes: Sequence[str]) -> float:
    """The metric for the right answer that fits best."""
    return max((metric(answer, right, classes) for right in rights), default=0.0)

"""What the answers to a task come to: a score with its standard error, and the agreement with the f16 cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .kind import Reply


def summary(
    metrics: Sequence[str], replies: Sequence[Reply], f16: Sequence[Reply]
) -> dict[str, dict[str, Any]]:
    """By metric: the mean score and its standard error, and how many answers differ from those of the f16 cache.

    Scores and agreement are in [0, 1]. Items count as independent: the error is the standard deviation divided by the
    square root of their number, for answers that are right or wrong sqrt(p (1 - p) / n). A metric without an answer of
    its own, such as mc2, has no agreement (None).
    """
    found = {}
    for metric in metrics:
        scores = [reply.scores[metric] for reply in replies]
        mean = sum(scores) / len(scores)
        variance = sum((score - mean) ** 2 for score in scores) / len(scores)
        compared = [
            ours.answers[metric] != theirs.answers[metric]
            for ours, theirs in zip(replies, f16, strict=True)
            if metric in ours.answers
        ]
        found[metric] = {
            "score": mean,
            "stderr": (variance / len(scores)) ** 0.5,
            "agreement": 1 - sum(compared) / len(compared) if compared else None,
            "changed": sum(compared) if compared else None,
        }
    return found

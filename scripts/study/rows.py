"""Rows of two sizes: the tokens that count most get larger ones, in as many bytes all together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import Kind

from .fit import Fit, Member, RowClass
from .importance import Importance
from .knowledge import Knowledge
from .variants import Variant

Doubles = NDArray[np.float64]


def classify(
    fits: Sequence[Fit], known: Knowledge, important: Importance, variant: Variant
) -> dict[Member, NDArray[np.int64]]:
    """The class of each token in each code, 1 for the larger rows, by the code's first member.

    Sets the fits' classes. Their weights are what the text's tokens turn out to weigh, in the mean over all codes of K,
    or of V.
    """
    chosen_by = important.later if variant.rows == "later" else important.seen
    rows, weighed = {}, {}
    for one in fits:
        guess, true = (_weights(one, known, weights) for weights in (chosen_by, important.later))
        # the first tokens are exact, and weigh nothing
        coded = true > 0
        rows[one.members[0]] = large = (guess >= np.quantile(guess[coded], 1 - variant.large)).astype(int)
        means = [true[coded & (large == row)].mean() / true[coded].mean() for row in (0, 1)]
        weighed[one.members[0]] = means
    for one in fits:
        same = [means for member, means in weighed.items() if member.kind == one.members[0].kind]
        small, large_weight = np.mean(same, axis=0)
        one.classes = (
            RowClass(1 - variant.large, float(small)),
            RowClass(variant.large, float(large_weight)),
        )
    return rows


def _weights(one: Fit, known: Knowledge, weights: Mapping[tuple[Kind, int], Doubles]) -> Doubles:
    """How much the errors of each token count in a code, [tokens]."""
    parts = (
        known.weights[m.layer][m.kind][m.head].sum() * weights[m.kind, m.layer][:, m.head]
        for m in one.members
    )
    return np.asarray(sum(parts))

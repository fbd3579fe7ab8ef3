"""What one cache loses on scored tokens: KL divergence, top-1 agreement and perplexity, and their standard errors.

Errors of means treat tokens as independent. Those of a difference or a ratio are paired: they are computed from the
difference at each token, so that what both caches have in common (hard and easy tokens) cancels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..reading.divergence import Doubles, Floats, kl_divergence

# tokens of context at which the second bucket begins; each later one begins at twice as many
FIRST_EDGE = 256

Integers = NDArray[np.int64]


@dataclass
class Losses:
    """The scored tokens of one cache, compared with the reference."""

    kl: list[Doubles] = field(default_factory=list)
    same: list[NDArray[np.bool_]] = field(default_factory=list)
    # the surprise, -ln p, at the tokens of the text: of this cache, and of the reference
    surprise: list[Doubles] = field(default_factory=list)
    reference_surprise: list[Doubles] = field(default_factory=list)
    # how many tokens came before the one that was read
    contexts: list[Integers] = field(default_factory=list)

    def add(self, reference: Floats, ours: Floats, following: list[int], n_before: int) -> None:
        """Add rows of log-probabilities, [rows, n_vocab] each.

        following: the tokens that come next in the text; the last row may have none.
        n_before: tokens before the one that the first row comes after; each further row has one more.
        """
        at = np.arange(len(following))
        self.kl.append(kl_divergence(reference, ours))
        self.same.append(reference.argmax(axis=1) == ours.argmax(axis=1))
        self.surprise.append(-ours[at, following].astype(np.float64))
        self.reference_surprise.append(-reference[at, following].astype(np.float64))
        self.contexts.append(np.arange(n_before, n_before + len(ours)))

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.kl))

    def summary(self, floor: Losses) -> dict[str, Any]:
        """Means, quantiles and errors over all tokens, as keys of a row (docs/evaluation.md); KL in nats.

        floor: the losses that arithmetic alone causes, of the same tokens in the same order.
        """
        kl, same = np.concatenate(self.kl), np.concatenate(self.same)
        excess = kl - np.concatenate(floor.kl)
        surprise = np.concatenate(self.surprise)
        more = surprise - np.concatenate(self.reference_surprise)
        top1 = float(same.mean())
        ppl, ratio = float(np.exp(surprise.mean())), float(np.exp(more.mean()))
        return {
            "ppl": ppl,
            # the error of a logarithm is the relative error
            "ppl_stderr": ppl * stderr(surprise),
            "ppl_ratio": ratio,
            "ppl_ratio_stderr": ratio * stderr(more),
            "kl_mean": float(kl.mean()),
            "kl_median": float(np.median(kl)),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "kl_p999": float(np.quantile(kl, 0.999)),
            "kl_max": float(kl.max()),
            "kl_floor": float(np.concatenate(floor.kl).mean()),
            "kl_excess": float(excess.mean()),
            "kl_excess_stderr": stderr(excess),
            "kl_by_position": self.by_position(floor),
            "top1": top1,
            "kl_mean_stderr": stderr(kl),
            "top1_stderr": float(np.sqrt(top1 * (1 - top1) / len(same))),
        }

    def by_position(self, floor: Losses) -> dict[str, dict[str, float]]:
        """The mean KL of the tokens whose context has 0 to 255 tokens, 256 to 511, 512 to 1023, and so on.

        The keys are "0-256", "256-512", …; a bucket without a scored token is left out.
        """
        contexts = np.concatenate(self.contexts)
        kl, floor_kl = np.concatenate(self.kl), np.concatenate(floor.kl)
        found = {}
        low, high = 0, FIRST_EDGE
        while low <= contexts.max():
            within = (low <= contexts) & (contexts < high)
            if n_tokens := int(within.sum()):
                found[f"{low}-{high}"] = {
                    "kl_mean": float(kl[within].mean()),
                    "kl_mean_stderr": stderr(kl[within]),
                    "kl_floor": float(floor_kl[within].mean()),
                    "tokens": n_tokens,
                }
            low, high = high, 2 * high
        return found


def stderr(values: Doubles) -> float:
    """The standard error of the mean of independent values."""
    return float(values.std() / np.sqrt(len(values)))

"""How far apart two distributions over the next token are: KL divergence, top-1 agreement, perplexity."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def log_probabilities(logits: Floats) -> Floats:
    """Natural logarithms of the probabilities, row by row: logits and result are [rows, n_vocab]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray(shifted - np.log(total), dtype=np.float32)


def kl_divergence(reference: Floats, ours: Floats) -> Doubles:
    """KL(reference ‖ ours) of each row in nats, from natural logarithms of probabilities, [rows, n_vocab] each."""
    with np.errstate(invalid="ignore"):
        terms = np.exp(reference) * (reference - ours)
    terms[np.isneginf(reference)] = 0  # a token of probability 0 adds nothing, whatever ours is
    return np.asarray(terms.sum(axis=1, dtype=np.float64), dtype=np.float64)


class Reference:
    """Log-probabilities of the reference on one chunk, [n_rows, n_vocab], in a temporary file as they may be large."""

    def __init__(self, n_rows: int, n_vocab: int) -> None:
        self.file = tempfile.TemporaryFile(prefix="minicache-")  # noqa: SIM115  (closed in close)
        self.rows: Floats = np.memmap(self.file, np.float32, "w+", shape=(n_rows, n_vocab))

    @staticmethod
    def size(n_rows: int, n_vocab: int) -> int:
        """Bytes of the file."""
        return 4 * n_rows * n_vocab

    def close(self) -> None:
        """Removes the file."""
        del self.rows
        self.file.close()


@dataclass
class Divergence:
    """Sums over all scored tokens of one configuration."""

    kl: list[Doubles] = field(default_factory=list)
    same: list[NDArray[np.bool_]] = field(default_factory=list)
    loss: list[Doubles] = field(default_factory=list)

    def add(self, reference: Floats, ours: Floats, following: list[int]) -> None:
        """Adds rows of log-probabilities, and the tokens that follow in the text; the last row may have none."""
        self.kl.append(kl_divergence(reference, ours))
        self.same.append(reference.argmax(axis=1) == ours.argmax(axis=1))
        self.loss.append(-ours[np.arange(len(following)), following].astype(np.float64))

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.kl))

    def summary(self) -> dict[str, float]:
        """Means over all tokens, with standard errors as if tokens were independent; KL in nats."""
        kl, same, loss = np.concatenate(self.kl), np.concatenate(self.same), np.concatenate(self.loss)
        top1 = float(same.mean())
        return {
            "ppl": float(np.exp(loss.mean())),
            "kl_mean": float(kl.mean()),
            "kl_p99": float(np.quantile(kl, 0.99)),
            "kl_max": float(kl.max()),
            "top1": top1,
            "kl_mean_stderr": float(kl.std() / np.sqrt(len(kl))),
            "top1_stderr": float(np.sqrt(top1 * (1 - top1) / len(same))),
        }

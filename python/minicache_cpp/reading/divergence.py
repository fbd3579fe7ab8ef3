"""How far apart two distributions over the next token are, and where the reference is kept."""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import NDArray

from ..errors import MiniCacheError
from ..host.files import reserve
from ..host.units import mib

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
        folder, n_bytes = tempfile.gettempdir(), self.size(n_rows, n_vocab)
        self.file = tempfile.TemporaryFile(prefix="minicache-")  # noqa: SIM115  (closed in close)
        try:
            reserve(self.file, n_bytes)
        except OSError as error:
            self.file.close()
            raise MiniCacheError(
                f"{folder} has no room for {mib(n_bytes)} of logits of the f16 cache ({error.strerror}); make room, "
                "or set TMPDIR to another folder"
            ) from error
        self.rows: Floats = np.memmap(self.file, np.float32, "w+", shape=(n_rows, n_vocab))

    @staticmethod
    def size(n_rows: int, n_vocab: int) -> int:
        """Bytes of the file."""
        return 4 * n_rows * n_vocab

    def close(self) -> None:
        """Removes the file."""
        del self.rows
        self.file.close()

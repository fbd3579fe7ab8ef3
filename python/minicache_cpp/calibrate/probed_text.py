"""Reads a text, and then its last tokens once more for each probe, with the result of a layer's attention changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..native import binding
from ..native.batch import BatchToken
from ..native.binding import llama_h
from ..reading.divergence import kl_divergence, log_probabilities
from .material import Chunk
from .observed import Observed

Floats = NDArray[np.float32]


class ProbedText:
    """A text whose last tokens are read with each probe."""

    def __init__(self, observed: Observed, chunk: Chunk, n_probed: int, n_vocab: int) -> None:
        self.observed, self.chunk, self.n_probed, self.n_vocab = observed, chunk, n_probed, n_vocab
        self.start = len(chunk.tokens) - n_probed
        self.positions = np.arange(len(chunk.tokens)) + chunk.position
        self.reference = np.empty(0, np.float32)

    def begin(self) -> Mapping[tuple[str, int], Floats] | None:
        """Reads the text into sequence 0 and drops the last tokens from it; returns what was seen.

        None where tokens cannot be dropped, as from a recurrent state.
        """
        chunk, observed = self.chunk, self.observed
        binding.clear(observed.ctx)
        observed.read(
            (
                BatchToken(token, chunk.position + i, wanted=i >= self.start)
                for i, token in enumerate(chunk.tokens)
            ),
            "qkvo",
        )
        self.reference = log_probabilities(observed.logits(self.n_probed, self.n_vocab))
        memory = llama_h.llama_get_memory(observed.ctx)
        dropped = llama_h.llama_memory_seq_rm(memory, 0, chunk.position + self.start, -1)
        return observed.seen if dropped else None

    def losses(self, moves: Sequence[Mapping[int, Floats]]) -> list[float]:
        """The mean KL divergences of the last tokens when each of these is added to the layers' attention."""
        chunk, observed, n = self.chunk, self.observed, self.n_probed
        memory = llama_h.llama_get_memory(observed.ctx)

        def change(layer: int, result: Floats) -> None:
            for row, move in enumerate(moves):
                if layer in move:
                    result[row * n : (row + 1) * n] += move[layer]

        for row in range(len(moves)):
            llama_h.llama_memory_seq_cp(memory, 0, row + 1, -1, -1)
        observed.change = change
        try:
            observed.read(
                BatchToken(chunk.tokens[i], chunk.position + i, row + 1, wanted=True)
                for row in range(len(moves))
                for i in range(self.start, len(chunk.tokens))
            )
        finally:
            observed.change = None
        logits = observed.logits(len(moves) * n, self.n_vocab).reshape(len(moves), n, -1)
        found = [float(kl_divergence(self.reference, log_probabilities(rows)).mean()) for rows in logits]
        for row in range(len(moves)):
            llama_h.llama_memory_seq_rm(memory, row + 1, -1, -1)
        return found

"""A context that reads tokens at given positions and returns the logits after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..cache.context_report import read_report
from ..cache.report import KVReport
from ..native import binding
from ..native.batch import BatchToken
from ..native.binding import llama_h
from .context import SequenceContext
from .divergence import Floats


class ScoredContext(SequenceContext):
    """A SequenceContext for text, which can return to a mark."""

    def decode(self, tokens: Sequence[int], position: int, scored_from: int) -> Iterator[tuple[int, Floats]]:
        """Reads tokens at consecutive positions, ubatch by ubatch.

        Yields (index of a token, logits [n, n_vocab] after it and after the n - 1 tokens that follow it) for the tokens
        from index `scored_from` on. The logits are llama.cpp's own memory and are valid until the next step.
        """
        size = llama_h.llama_n_ubatch(self.ctx)
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            entries = (
                BatchToken(token, position + at, wanted=at >= scored_from)
                for at, token in enumerate(part, start)
            )
            self.batch.decode(self.ctx, entries)
            first = max(start, scored_from)
            if (n_rows := start + len(part) - first) > 0:
                logits = llama_h.llama_get_logits(self.ctx)
                yield first, np.ctypeslib.as_array(logits, (n_rows, self.n_vocab))

    def read(self, tokens: Sequence[int], position: int) -> None:
        """Reads tokens without any logits."""
        for _ in self.decode(tokens, position, len(tokens)):
            pass

    def likeliest(self, tokens: Sequence[int], position: int, n_last: int) -> list[int]:
        """Reads tokens, and returns the likeliest token after each of the last `n_last`."""
        found: list[int] = []
        for _, logits in self.decode(tokens, position, len(tokens) - n_last):
            found += logits.argmax(axis=1).tolist()
        return found

    def mark(self) -> None:
        """Remembers what has been read so far, so that back() restores it bit for bit.

        In a merged cache the tokens that would be cut off may have displaced retained tokens before them, and
        sliding-window layers may have forgotten tokens for them.
        """
        if self.report().active or llama_h.llama_model_n_swa(llama_h.llama_get_model(self.ctx)):
            self.marked = binding.get_state(self.ctx, 0)
        else:
            super().mark()

    def report(self) -> KVReport:
        """What the cache takes, and what is merged."""
        return read_report(self.ctx)

    def __enter__(self) -> ScoredContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

"""llama.cpp's bookkeeping of cache cells: where each token lies, who sees it, and how batches are split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


def window_slot(cell: int, window: int) -> int:
    """The slot of a window that may hold a cell: the first cells have slots for good, the others share a ring."""
    first = min(window // 16, 4)
    return cell if cell < first else first + (cell - first) % (window - first)


@dataclass(frozen=True)
class Token:
    id: int
    pos: int
    seq: int


@dataclass(frozen=True)
class Ubatch:
    """Tokens that go through the graph together, as indices into the batch, one list for each stream."""

    entries: list[list[int]]
    streams: list[int]


def split(batch: list[Token], n_ubatch: int, unified: bool) -> list[Ubatch]:
    """Splits a batch into ubatches.

    A unified cache cuts it in its order. Otherwise a ubatch has equally many tokens of neighbouring sequences.
    """
    if unified:
        numbers = list(range(len(batch)))
        return [Ubatch([numbers[i : i + n_ubatch]], [0]) for i in range(0, len(numbers), n_ubatch)]
    queues: dict[int, list[int]] = {}
    for number, token in enumerate(batch):
        queues.setdefault(token.seq, []).append(number)
    result = []
    while any(queues.values()):
        streams: list[int] = []
        waiting = sorted(number for queue in queues.values() for number in queue)
        for seq in [batch[number].seq for number in waiting]:
            if seq not in streams and (not streams or seq == streams[-1] + 1):
                streams.append(seq)
                if len(streams) > n_ubatch:
                    break
        n_each = min(max(n_ubatch // len(streams), 1), *(len(queues[seq]) for seq in streams))
        result.append(Ubatch([queues[seq][:n_each] for seq in streams], streams))
        for seq in streams:
            del queues[seq][:n_each]
    return result


class Cells:
    """The cells of one stream."""

    def __init__(self, n_cells: int, n_seq: int) -> None:
        self.pos = np.full(n_cells, -1)
        self.shift = np.zeros(n_cells, dtype=int)
        self.member = np.zeros((n_seq, n_cells), dtype=bool)  # which sequences a cell belongs to
        self.head = 0

    @property
    def used(self) -> npt.NDArray[np.bool_]:
        return self.member.any(axis=0)

    def find(self, n_tokens: int) -> list[int]:
        """Returns the next free cells from the head on, or from the start where many cells before the head are free."""
        used = self.used
        head = 0 if self.head > used.sum() + 2 * n_tokens else self.head
        order = np.roll(np.arange(len(used)), -head)
        found = order[~used[order]][:n_tokens].tolist()
        assert len(found) == n_tokens, "the cache is full"
        return found

    def place(self, cells: list[int], tokens: list[Token]) -> None:
        for cell, token in zip(cells, tokens, strict=True):
            self.pos[cell], self.shift[cell] = token.pos, 0
            self.member[token.seq, cell] = True
        self.head = cells[-1] + 1

    def visible(self, token: Token) -> npt.NDArray[np.bool_]:
        return self.member[token.seq] & (self.pos <= token.pos)

    def within(self, seq: int, p0: int, p1: int) -> list[int]:
        last = np.inf if p1 < 0 else p1
        return (self.member[seq] & (self.pos >= max(p0, 0)) & (self.pos < last)).nonzero()[0].tolist()

    def leave(self, cells: list[int], seq: int) -> None:
        """Takes `cells` from a sequence, and moves the head back to the first cell that is now free."""
        self.member[seq, cells] = False
        self._free([cell for cell in cells if not self.member[:, cell].any()])

    def keep(self, seq: int) -> None:
        others = (self.used & ~self.member[seq]).nonzero()[0].tolist()
        self.member[np.arange(len(self.member)) != seq] = False
        self._free(others)

    def move(self, cells: list[int], delta: int) -> None:
        self.pos[cells] += delta
        self.shift[cells] += delta
        freed = [cell for cell in cells if self.pos[cell] < 0]
        self.member[:, freed] = False
        self.head = len(self.pos) if freed else 0
        self._free(freed)

    def divide(self, cells: list[int], divisor: int) -> None:
        before = self.pos[cells]
        self.pos[cells] //= divisor
        # with upstream's sign
        self.shift[cells] += before - self.pos[cells]

    def _free(self, cells: list[int]) -> None:
        self.pos[cells], self.shift[cells] = -1, 0
        if cells:
            self.head = min(self.head, *cells)

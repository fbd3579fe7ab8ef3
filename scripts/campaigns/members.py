"""What goes through a walk: a context of the library, and the oracle. Both give the same answers to the same calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from oracle.cells import Token, split
from oracle.model import Config, Oracle
from oracle.states import WHOLE, SavedStream, restore, save
from support.bounds import MARGIN
from support.contexts import Context
from support.tiny_models import TinyModel

Logits = npt.NDArray[np.floating]
Tokens = Sequence[Token]


class Member(Protocol):
    """Every call but the last three is an operation of a walk; what it returns must be the same for all members."""

    def decode(self, tokens: Tokens, /) -> Logits | None: ...
    def seq_rm(self, seq: int, p0: int, p1: int, /) -> bool: ...
    def seq_cp(self, source: int, target: int, p0: int, p1: int, /) -> None: ...
    def seq_keep(self, seq: int, /) -> None: ...
    def seq_add(self, seq: int, p0: int, p1: int, delta: int, /) -> None: ...
    def seq_div(self, seq: int, p0: int, p1: int, divisor: int, /) -> None: ...
    def clear(self) -> None: ...
    def save(self, seq: int, /) -> None: ...
    def restore(self, number: int, seq: int, anew: bool, /) -> bool: ...
    def positions(self, seq: int, /) -> tuple[int, int]: ...
    def close(self) -> None: ...


class Reference(Member, Protocol):
    """A member that knows before an operation whether rounding could decide what comes of it."""

    def is_clear(self, tokens: Tokens, /) -> bool: ...
    def can_restore(self, number: int, seq: int, /) -> bool: ...


class Library:
    """A context. `make` makes another one like it, to which a state may be restored."""

    def __init__(self, make: Callable[[], Context]) -> None:
        self.make = make
        self.ctx = make()
        self.saved: list[bytes] = []

    def decode(self, tokens: Tokens) -> Logits | None:
        """The logits, or None where there is no room."""
        try:
            return self.ctx.decode(tokens)
        except RuntimeError as error:
            if "returned 1" in str(error):
                return None
            raise

    def seq_rm(self, seq: int, p0: int, p1: int) -> bool:
        return self.ctx.seq_rm(seq, p0, p1)

    def seq_cp(self, source: int, target: int, p0: int, p1: int) -> None:
        self.ctx.seq_cp(source, target, p0, p1)

    def seq_keep(self, seq: int) -> None:
        self.ctx.seq_keep(seq)

    def seq_add(self, seq: int, p0: int, p1: int, delta: int) -> None:
        self.ctx.seq_add(seq, p0, p1, delta)

    def seq_div(self, seq: int, p0: int, p1: int, divisor: int) -> None:
        self.ctx.seq_div(seq, p0, p1, divisor)

    def clear(self) -> None:
        self.ctx.clear()

    def save(self, seq: int) -> None:
        self.saved.append(self.ctx.state() if seq == WHOLE else self.ctx.seq_state(seq))

    def restore(self, number: int, seq: int, anew: bool) -> bool:
        if anew:
            self.ctx.close()
            self.ctx = self.make()
        state = self.saved[number]
        return self.ctx.restore(state) if seq == WHOLE else self.ctx.restore_seq(state, seq)

    def positions(self, seq: int) -> tuple[int, int]:
        return self.ctx.positions(seq)

    def close(self) -> None:
        self.ctx.close()

    def is_clear(self, tokens: Tokens) -> bool:
        return True

    def can_restore(self, number: int, seq: int) -> bool:
        return True


class OracleMember:
    """The oracle, which follows every cell and slot."""

    def __init__(self, model: TinyModel, config: Config, margin: float = MARGIN) -> None:
        self.model, self.config, self.margin = model, config, margin
        self.oracle = Oracle(model, config)
        self.saved: list[list[SavedStream]] = []
        # what is_clear() has found out already
        self.tried: tuple[Tokens, Oracle, Logits] | None = None

    def is_clear(self, tokens: Tokens) -> bool:
        """Whether no retained token is chosen by less than the margin, which is the library's rounding."""
        if not self._has_room(tokens):
            return True
        oracle = self._copy()
        logits = oracle.decode(tokens)
        self.tried = tokens, oracle, logits
        return bool(oracle.margin > self.margin)

    def can_restore(self, number: int, seq: int) -> bool:
        oracle = self._copy()
        restore(oracle, self.saved[number], seq)
        return bool(oracle.margin > self.margin)

    def decode(self, tokens: Tokens) -> Logits | None:
        self.oracle._apply_shift()
        if not self._has_room(tokens):
            self._take_back(tokens)
            return None
        if self.tried is not None and self.tried[0] is tokens:
            self.oracle = self.tried[1]
            return self.tried[2]
        return self.oracle.decode(tokens)

    def seq_rm(self, seq: int, p0: int, p1: int) -> bool:
        self.oracle.seq_rm(seq, p0, p1)
        return True

    def seq_cp(self, source: int, target: int, p0: int, p1: int) -> None:
        self.oracle.seq_cp(source, target, p0, p1)

    def seq_keep(self, seq: int) -> None:
        self.oracle.seq_keep(seq)

    def seq_add(self, seq: int, p0: int, p1: int, delta: int) -> None:
        self.oracle.seq_add(seq, p0, p1, delta)

    def seq_div(self, seq: int, p0: int, p1: int, divisor: int) -> None:
        self.oracle.seq_div(seq, p0, p1, divisor)

    def clear(self) -> None:
        self.oracle.clear()

    def save(self, seq: int) -> None:
        self.saved.append(save(self.oracle, seq))

    def restore(self, number: int, seq: int, anew: bool) -> bool:
        if anew:
            self.oracle = Oracle(self.model, self.config)
        return restore(self.oracle, self.saved[number], seq)

    def positions(self, seq: int) -> tuple[int, int]:
        cells = self.oracle._stream(seq)
        pos = cells.pos[cells.member[seq]]
        return (int(pos.min()), int(pos.max())) if len(pos) else (-1, -1)

    def close(self) -> None:
        pass

    def _copy(self) -> Oracle:
        """A copy that can go on by itself. What never changes is shared: weights, settings, codecs."""
        shared: list[object] = [self.oracle.model, self.oracle.config, *self.config.codecs]
        return copy.deepcopy(self.oracle, {id(one): one for one in shared})

    def _take_back(self, tokens: Tokens) -> None:
        """Moves heads as llama.cpp does where a batch finds no room.

        Its prepare() takes the ubatches back that it had placed, and then lets a stream's head be that which another
        stream had (v_heads_old[s], where that of stream strm[s] is meant). Cells are searched for from there on, so
        later tokens lie elsewhere, and other ones of them are retained (seed 701541).
        """
        cells = self.oracle.cells
        trial = copy.deepcopy(cells)
        placed = []
        for ubatch in split(list(tokens), self.config.n_ubatch, self.config.unified):
            heads = [one.head for one in trial]
            parts = list(zip(ubatch.streams, ubatch.entries, strict=True))
            if any((~trial[stream].used).sum() < len(entries) for stream, entries in parts):
                break
            for stream, entries in parts:
                trial[stream].place(trial[stream].find(len(entries)), [tokens[i] for i in entries])
            placed.append((ubatch.streams, heads))
        for streams, heads in reversed(placed):
            for number, stream in enumerate(streams):
                cells[stream].head = heads[number]

    def _has_room(self, tokens: Tokens) -> bool:
        free = [int((~cells.used).sum()) for cells in self.oracle.cells]
        for token in tokens:
            free[0 if self.config.unified else token.seq] -= 1
        return min(free) >= 0

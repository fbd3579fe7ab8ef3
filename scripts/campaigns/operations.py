"""The operations of a walk, chosen at random among those that make sense where the walk is."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from campaigns.members import Reference
from oracle.cells import Token
from oracle.states import WHOLE
from support.tiny_models import FIRST_TOKEN, PLANTED

# how often each operation is tried
WEIGHTS = {
    "decode": 40,
    "decode too much": 2,
    "remove the end": 7,
    "remove a part": 6,
    "remove all": 3,
    "copy": 7,
    "keep": 2,
    "add": 8,
    "divide": 3,
    "clear": 1,
    "save": 6,
    "save a sequence": 6,
    "restore": 4,
    "restore a sequence": 6,
}
MOST_POSITION = 3000  # positions grow with every shift; models are trained for 4096
MOST_STATES = 6


class Step(NamedTuple):
    """A call of a member's method."""

    method: str
    arguments: tuple[object, ...]

    def __str__(self) -> str:
        if self.method != "decode":
            return f"{self.method}{self.arguments}"
        tokens = self.arguments[0]
        assert isinstance(tokens, list)
        return f"decode({', '.join(f'{one.id}@{one.pos}/{one.seq}' for one in tokens)})"


@dataclass(frozen=True)
class Rules:
    """What the memory of a walk is like, and which operations it can be asked for."""

    n_seq: int
    unified: bool
    n_cells: int  # of each stream
    shifts: bool = True
    divides: bool = True
    parts: bool = True  # whether a part of a sequence can be removed
    # whether states are saved and restored before moves and copies have reached the cache, which upstream delays
    unsettled: bool = False


@dataclass
class Chooser:
    """Chooses steps. `pending`: cells were moved or copied, and the next decode has yet to do it."""

    rng: random.Random
    rules: Rules
    reference: Reference
    pending: bool = False
    # of each saved state: its sequence, or WHOLE
    saved: list[int] = field(default_factory=list)

    def next(self) -> tuple[str, Step]:
        """The name of an operation, and the step."""
        names, weights = list(WEIGHTS), list(WEIGHTS.values())
        while True:
            name = self.rng.choices(names, weights)[0]
            choose: Callable[[], Step | None] = getattr(self, "_" + name.replace(" ", "_"))
            step = choose()
            if step is not None:
                self._note(step)
                return name, step

    def _note(self, step: Step) -> None:
        if step.method == "decode":
            self.pending = False
        elif step.method in ("seq_add", "seq_div") or (step.method == "seq_cp" and not self.rules.unified):
            self.pending = True
        elif step.method == "save":
            self.saved.append(int(step.arguments[0]))  # type: ignore[call-overload]

    #
    # where the walk is
    #

    def _sequence(self, empty: bool = False) -> int | None:
        """A sequence, as a rule one that has tokens."""
        found = [seq for seq in range(self.rules.n_seq) if empty or self._end(seq) > 0]
        return self.rng.choice(found) if found else None

    def _end(self, seq: int) -> int:
        """The position of the next token."""
        return self.reference.positions(seq)[1] + 1

    def _range(self, seq: int) -> tuple[int, int]:
        """A part of a sequence, from one position to before another; -1 for either end of all."""
        end = self._end(seq)
        p0, p1 = sorted(self.rng.randint(0, end) for _ in range(2))
        return (-1 if self.rng.random() < 0.1 else p0), (-1 if self.rng.random() < 0.2 else p1)

    #
    # operations; each gives None where it makes no sense
    #

    def _decode(self) -> Step | None:
        for most in (90, 40, 20, 10, 5, 2, 1):
            tokens = self._tokens(self.rng.choice([1, 1, 2, 7, 20, most]) if most > 1 else 1, most)
            if tokens and self.reference.is_clear(tokens):
                return Step("decode", (tokens,))
        return None

    def _tokens(self, n_each: int, most: int) -> list[Token]:
        """A batch of some sequences: one after the other, or in turn."""
        chosen = [seq for seq in range(self.rules.n_seq) if self.rng.random() < 0.6]
        if sum(self._end(seq) > MOST_POSITION for seq in chosen):
            return []
        # no batch is longer than n_batch, which in these contexts is at least the cells of a stream
        most = min(most, self.rules.n_cells // max(len(chosen), 1))
        lengths = [min(most, n_each + (self.rng.randint(0, 5) if n_each > 2 else 0)) for _ in chosen]
        columns = [
            [
                Token(self.rng.randrange(FIRST_TOKEN, min(PLANTED)), self._end(seq) + i, seq)
                for i in range(length)
            ]
            for seq, length in zip(chosen, lengths, strict=True)
        ]
        if self.rng.random() < 0.5:
            return [token for column in columns for token in column]
        rounds = range(max(lengths, default=0))
        return [column[i] for i in rounds for column in columns if i < len(column)]

    def _decode_too_much(self) -> Step | None:
        seq = self._sequence()
        if seq is None or self._end(seq) > MOST_POSITION:
            return None
        tokens = [Token(FIRST_TOKEN, self._end(seq) + i, seq) for i in range(self.rules.n_cells)]
        return Step("decode", (tokens,)) if self.reference.is_clear(tokens) else None

    def _remove_the_end(self) -> Step | None:
        seq = self._sequence()
        if seq is None:
            return None
        return Step("seq_rm", (seq, self.rng.randint(max(0, self._end(seq) - 60), self._end(seq)), -1))

    def _remove_a_part(self) -> Step | None:
        seq = self._sequence()
        if seq is None or not self.rules.parts:
            return None
        return Step("seq_rm", (seq if self.rng.random() < 0.9 else -1, *self._range(seq)))

    def _remove_all(self) -> Step | None:
        seq = self._sequence()
        return None if seq is None else Step("seq_rm", (seq, -1, -1))

    def _copy(self) -> Step | None:
        source, target = self._sequence(), self._sequence(empty=True)
        if source is None or target is None or source == target:
            return None
        part = self._range(source) if self.rules.unified and self.rules.parts else (-1, -1)
        return Step("seq_cp", (source, target, *(part if self.rng.random() < 0.4 else (-1, -1))))

    def _keep(self) -> Step | None:
        seq = self._sequence()
        return None if seq is None else Step("seq_keep", (seq,))

    def _add(self) -> Step | None:
        seq = self._sequence()
        if seq is None or not self.rules.shifts:
            return None
        p0, p1 = self._range(seq) if self.rng.random() < 0.4 else (self.rng.randint(0, self._end(seq)), -1)
        if p0 == p1:
            return None
        # upstream takes positions below 0 out of the sequence
        return Step("seq_add", (seq, p0, p1, self.rng.randint(-min(max(p0, 0) + 3, 60), 30)))

    def _divide(self) -> Step | None:
        seq = self._sequence()
        if seq is None or not (self.rules.shifts and self.rules.divides):
            return None
        return Step("seq_div", (seq, *self._range(seq), self.rng.randint(2, 4)))

    def _clear(self) -> Step | None:
        return Step("clear", ())

    def _save(self) -> Step | None:
        return self._saving(WHOLE)

    def _save_a_sequence(self) -> Step | None:
        seq = self._sequence()
        return None if seq is None else self._saving(seq)

    def _saving(self, seq: int) -> Step | None:
        settled = self.rules.unsettled or not self.pending
        return Step("save", (seq,)) if settled and len(self.saved) < MOST_STATES else None

    def _restore(self) -> Step | None:
        return self._restoring(WHOLE, [i for i, seq in enumerate(self.saved) if seq == WHOLE])

    def _restore_a_sequence(self) -> Step | None:
        seq = self._sequence(empty=True)
        assert seq is not None
        return self._restoring(seq, [i for i, one in enumerate(self.saved) if one != WHOLE])

    def _restoring(self, seq: int, numbers: list[int]) -> Step | None:
        if not numbers or (self.pending and not self.rules.unsettled):
            return None
        number = self.rng.choice(numbers)
        # a new context has nothing but what is restored
        anew = seq == WHOLE and self.rng.random() < 0.4
        return Step("restore", (number, seq, anew)) if self.reference.can_restore(number, seq) else None

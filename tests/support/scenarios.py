"""Scenarios of sequence operations, which a context and the oracle both go through."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from oracle.cells import Token
from support.contexts import interleaved, run
from support.tiny_models import prompt


class Memory(Protocol):
    """The operations that a context and the oracle have in common."""

    def decode(self, tokens: list[Token], /) -> npt.NDArray[np.floating]: ...
    def seq_rm(self, seq: int, p0: int, p1: int, /) -> object: ...
    def seq_cp(self, source: int, target: int, p0: int = -1, p1: int = -1, /) -> None: ...
    def seq_keep(self, seq: int, /) -> None: ...
    def seq_add(self, seq: int, p0: int, p1: int, delta: int, /) -> None: ...
    def seq_div(self, seq: int, p0: int, p1: int, divisor: int, /) -> None: ...
    def clear(self) -> None: ...


Result = list[npt.NDArray[np.floating]]


def take_turns(m: Memory, seed: int) -> Result:
    """Decodes one token of one sequence at a time: graphs of the same shape run on different streams."""
    zero, one = run(prompt(25, seed)), run(prompt(25, seed + 1), seq=1)
    return [m.decode([token]) for pair in zip(zero, one, strict=True) for token in pair]


def copy_then_diverge(m: Memory, seed: int) -> Result:
    m.decode(run(prompt(45, seed)))
    m.seq_cp(0, 1)
    return [m.decode(interleaved([prompt(30, seed + 1), prompt(30, seed + 2)], first=45))]


def copy_twice(m: Memory, seed: int) -> Result:
    """Copies to sequences that had tokens of their own."""
    m.decode(interleaved([prompt(20, seed), prompt(20, seed + 1)]))
    m.seq_rm(1, -1, -1)
    m.seq_cp(0, 1)
    first = m.decode(run(prompt(12, seed + 2), 20, seq=1))
    m.seq_rm(0, -1, -1)
    m.seq_cp(1, 0)
    return [first, m.decode(interleaved([prompt(10, seed + 3), prompt(10, seed + 4)], first=32))]


def copy_a_part(m: Memory, seed: int) -> Result:
    m.decode(run(prompt(50, seed)))
    m.seq_cp(0, 1, 0, 20)
    first = m.decode(run(prompt(20, seed + 1), 20, seq=1))
    m.seq_rm(0, -1, -1)
    return [first, m.decode(run(prompt(20, seed + 2), 40, seq=1))]


def remove_the_end(m: Memory, seed: int) -> Result:
    """Replaces the last tokens, as editing a chat does: other tokens take their positions and cells."""
    m.decode(run(prompt(60, seed)))
    m.seq_rm(0, 33, -1)
    first = m.decode(run(prompt(40, seed + 1), 33))
    m.seq_rm(0, 35, 70)
    return [first, m.decode(run(prompt(20, seed + 2), 73))]


def remove_and_reuse(m: Memory, seed: int) -> Result:
    """Empties cells in the middle, which later tokens then take one by one."""
    m.decode(run(prompt(200, seed)))
    m.seq_rm(0, 10, 47)
    m.seq_rm(0, 100, 150)
    ids = prompt(100, seed + 1)
    return [m.decode(run(ids[i : i + 20], 200 + i)) for i in range(0, 100, 20)]


def keep_one(m: Memory, seed: int) -> Result:
    m.decode(interleaved([prompt(50, seed), prompt(50, seed + 1)]))
    m.seq_keep(1)
    return [m.decode(run(prompt(60, seed + 2), 50, seq=1))]


def shift_context(m: Memory, seed: int) -> Result:
    """Removes the oldest tokens but the first few and moves the rest up, as a chat does that outgrows its context."""
    m.decode(run(prompt(120, seed)))
    first = []
    for i in range(2):
        m.seq_rm(0, 5, 45)
        m.seq_add(0, 45, -1, -40)
        first.append(m.decode(run(prompt(40, seed + 1 + i), 80)))
    return first


def shift_and_shift_back(m: Memory, seed: int) -> Result:
    m.decode(run(prompt(60, seed)))
    m.seq_add(0, 0, -1, 17)
    first = m.decode(run(prompt(10, seed + 1), 77))
    m.seq_add(0, 0, -1, -9)
    return [first, m.decode(run(prompt(10, seed + 2), 78))]


def shift_one_of_two(m: Memory, seed: int) -> Result:
    m.decode(interleaved([prompt(40, seed), prompt(40, seed + 1)]))
    m.seq_rm(1, 0, 15)
    m.seq_add(1, 15, -1, -15)
    zero, one = run(prompt(20, seed + 2), 40), run(prompt(20, seed + 3), 25, seq=1)
    return [m.decode([token for pair in zip(zero, one, strict=True) for token in pair])]


def divide_positions(m: Memory, seed: int) -> Result:
    """Divides positions by a number, as self-extend does."""
    m.decode(run(prompt(48, seed)))
    m.seq_div(0, 0, 48, 4)
    return [m.decode(run(prompt(20, seed + 1), 12))]


def clear_and_start_again(m: Memory, seed: int) -> Result:
    m.decode(run(prompt(70, seed)))
    m.clear()
    return [m.decode(run(prompt(50, seed + 1)))]


def remove_everything(m: Memory, seed: int) -> Result:
    m.decode(interleaved([prompt(50, seed), prompt(50, seed + 1)]))
    m.seq_rm(0, -1, -1)
    m.seq_rm(1, -1, -1)
    first = m.decode(interleaved([prompt(40, seed + 2), prompt(40, seed + 3)]))
    m.seq_rm(-1, 30, -1)  # -1: of every sequence
    return [first, m.decode(interleaved([prompt(40, seed + 4), prompt(40, seed + 5)], first=30))]


SCENARIOS = [
    take_turns,
    copy_then_diverge,
    copy_twice,
    copy_a_part,
    remove_the_end,
    remove_and_reuse,
    keep_one,
    shift_context,
    shift_and_shift_back,
    shift_one_of_two,
    divide_positions,
    clear_and_start_again,
    remove_everything,
]

# where sequences have streams of their own, upstream copies and keeps whole streams only
ONE_STREAM_ONLY = {copy_a_part, keep_one}

CASES = [
    (scenario, unified)
    for scenario in SCENARIOS
    for unified in (True, False)
    if unified or scenario not in ONE_STREAM_ONLY
]

"""Saved states of the oracle: which cells tokens come back to, and which of them stay retained there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .cells import Cells, Token, window_slot
from .model import CodedGroup, Group, Oracle

Array = npt.NDArray[np.generic]


class SavedSlot(NamedTuple):
    """A token that a group holds unmerged: its number among the saved ones, and K and V of all layers."""

    token: int
    in_window: bool
    distance: float
    rows: Array


@dataclass(frozen=True)
class SavedStream:
    """The tokens of one stream, or those of one sequence in it, in the order of their cells."""

    pos: Array
    member: Array  # [n_seq, n_tokens]
    offsets: Array
    rows: dict[tuple[int, str], Array]  # by the first layer and the name of the array
    slots: dict[int, list[SavedSlot]]  # by the first layer of the group

    def __len__(self) -> int:
        return len(self.pos)


WHOLE = -1
WINDOW_SLOT = True


def save(oracle: Oracle, seq: int = WHOLE) -> list[SavedStream]:
    """The state of a sequence, or of the whole context: one for each stream. Shifts must have been applied."""
    result = []
    for stream, cells in enumerate(oracle.cells):
        if seq == WHOLE:
            chosen = cells.used.nonzero()[0]
        elif oracle.config.unified or stream == seq:
            chosen = cells.member[seq].nonzero()[0]
        else:
            chosen = np.zeros(0, dtype=int)
        result.append(
            SavedStream(
                cells.pos[chosen].copy(),
                cells.member[:, chosen].copy(),
                oracle.offsets[stream, chosen].copy(),
                {key: array[stream, chosen].copy() for key, array in rows_of(oracle).items()},
                {
                    group.layer: saved_slots(oracle, group, stream, chosen.tolist())
                    for group in oracle.groups.values()
                },
            )
        )
    return result


def restore(oracle: Oracle, saved: list[SavedStream], seq: int = WHOLE) -> bool:
    """Puts a state back, as upstream does. Returns False, and changes nothing, where there is no room for it."""
    if seq == WHOLE:
        oracle.clear()
        for stream, one in enumerate(saved):
            # the first cells take them, and the search for free cells starts anew
            put(oracle, stream, list(range(len(one))), one, one.member)
        return True
    stream = 0 if oracle.config.unified else seq
    cells = oracle.cells[stream]
    own = cells.member[seq] & (cells.member.sum(axis=0) == 1)
    room = int((~cells.used | own).sum())
    if max(len(one) for one in saved) > room:
        return False
    for one in saved:
        # upstream skips empty streams, so that an empty state leaves the sequence as it is
        if len(one) == 0:
            continue
        oracle.seq_rm(seq, -1, -1)
        found = cells.find(len(one))
        member = np.zeros((oracle.config.n_seq_max, len(one)), dtype=bool)
        member[seq] = True
        cells.place(found, [Token(0, int(pos), seq) for pos in one.pos])
        put(oracle, stream, found, one, member)
    return True


def put(oracle: Oracle, stream: int, cells: list[int], saved: SavedStream, member: Array) -> None:
    own: Cells = oracle.cells[stream]
    own.pos[cells], own.shift[cells], own.member[:, cells] = saved.pos, 0, member
    oracle.offsets[stream, cells] = saved.offsets
    for key, array in rows_of(oracle).items():
        array[stream, cells] = saved.rows[key]
    for group in oracle.groups.values():
        put_slots(oracle, group, stream, cells, saved.slots[group.layer])


def rows_of(oracle: Oracle) -> dict[tuple[int, str], Array]:
    """The arrays [n_stream, n_cells, ...] that hold what is stored of tokens."""
    found: dict[tuple[int, str], Array] = {}
    for layer in oracle.plain.values():
        found |= {(layer.layer, name): getattr(layer, name) for name in ("k", "v")}
    for group in oracle.groups.values():
        names = ("rows_k", "rows_v") if isinstance(group, CodedGroup) else ("k", "v", "mag")
        found |= {(group.layer, name): getattr(group, name) for name in names}
    return found


def slots_of(oracle: Oracle, cell: int) -> list[tuple[bool, int]]:
    """The slots that may hold a cell: its block's, then the window's; and whether it is the window's."""
    config = oracle.config
    found = [(not WINDOW_SLOT, config.n_exact + cell // config.block)] if config.block else []
    return found + ([(WINDOW_SLOT, window_slot(cell, config.n_exact))] if config.n_exact else [])


def saved_slots(oracle: Oracle, group: Group, stream: int, cells: list[int]) -> list[SavedSlot]:
    return [
        SavedSlot(
            token,
            in_window,
            float(group.slot_distance[stream, slot]),
            group.pool[stream, slot].copy(),
        )
        for token, cell in enumerate(cells)
        for in_window, slot in slots_of(oracle, cell)
        if group.slot_cell[stream, slot] == cell
    ]


def put_slots(oracle: Oracle, group: Group, stream: int, cells: list[int], saved: list[SavedSlot]) -> None:
    """Where two tokens meet in a block the more distant one stays, and in the window the later one."""
    held, used = group.slot_cell[stream], oracle.cells[stream].used
    for cell in cells:
        for _, slot in slots_of(oracle, cell):
            if held[slot] == cell or (held[slot] >= 0 and not used[held[slot]]):
                held[slot] = -1
    for one in saved:
        cell = cells[one.token]
        slot = dict(slots_of(oracle, cell))[one.in_window]
        if held[slot] >= 0 and not one.in_window:
            gain = one.distance - group.slot_distance[stream, slot]
            oracle.margin = min(oracle.margin, abs(gain))
            if gain <= 0:
                continue
        held[slot] = cell
        if not one.in_window:
            group.slot_distance[stream, slot] = one.distance
        group.pool[stream, slot] = one.rows

"""The process in which allocations fail, one after the other."""

from __future__ import annotations

import ctypes
import itertools
import random
import resource
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from campaigns.allocations import Allocations
from campaigns.children import say
from campaigns.memory_operations import OPERATIONS, REFUSALS, Operation, Workshop
from minicache_cpp import MiniCacheError
from minicache_cpp.native.binding import llama_h
from support.contexts import quiet

DONE, REFUSED, NOT_REACHED = "done all the same", "refused", "without a failure"


class Point(NamedTuple):
    """One allocation of one operation."""

    operation: str
    at: int
    all_after: bool

    def __str__(self) -> str:
        return f"{self.operation}, allocation {self.at}{' and all after it' if self.all_after else ''}"


def main(names: Sequence[str], seed: int, n_steps: int) -> None:
    """Goes through so many of the points from a seed on, and writes a line of JSON before and after each."""
    llama_h.llama_log_set(quiet, ctypes.c_void_p(0))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        shop, allocations = Workshop(Path(folder)), Allocations()
        operations: dict[str, Operation] = {name: OPERATIONS[name](shop) for name in names}
        every = points(operations, allocations)
        say({"points": len(every)})
        for number in range(seed, min(seed + n_steps, len(every))):
            point = every[number]
            say({"begins": number, "where": str(point)})
            result = once(operations[point.operation], point, allocations)
            say({"ends": number, "operation": point.operation, **result})
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        say({"lost": shop.lost, "peak": peak})


def points(operations: dict[str, Operation], allocations: Allocations) -> list[Point]:
    """Every allocation of every operation, alone and with all after it, in an order that mixes operations.

    Buffers come first: they are what a full memory fails at, and few.
    """
    found = []
    for name, operation in operations.items():
        for _ in range(2):  # the first time makes what stays
            operation.prepare()
            _, counted, _ = allocations.during(operation.run, -1, False)
        own = [Point(name, at, lasting) for at in range(counted) for lasting in (False, True)]
        random.Random("points").shuffle(own)
        buffers = set(allocations.buffers())
        own.sort(key=lambda point: point.at not in buffers)
        found.append(own)
    mixed = itertools.zip_longest(*found)
    return [one for together in mixed for one in together if one is not None]


def once(operation: Operation, point: Point, allocations: Allocations) -> dict[str, str]:
    operation.prepare()
    raised, _, n_failed = allocations.during(operation.run, point.at, point.all_after)
    # llama.cpp has its reasons in its log alone, where Llama finds them
    is_silent = isinstance(raised, MiniCacheError) and not str(raised)
    if raised is not None and (is_silent or not isinstance(raised, REFUSALS)):
        frames = traceback.extract_tb(raised.__traceback__)[-3:]
        where = " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(frames))
        return {"wrong": f"{type(raised).__name__}: {str(raised)[:200]} ({where})"}
    if raised is not None and "\n" in str(raised):
        return {"wrong": f"a refusal that is not one line: {str(raised)[:200]!r}"}
    wrong = operation.check(raised)
    if wrong:
        return {"wrong": f"{wrong}; raised was {raised}"}
    if not n_failed:
        return {"result": NOT_REACHED}
    return {"result": DONE if raised is None else REFUSED}

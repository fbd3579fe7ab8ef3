"""The processor: how many threads to run on it, work that they share, and its name."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

CGROUPS = Path("/sys/fs/cgroup")

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yields work(item) of each item, in order, while `threads` threads work on the items that follow.

    What `work` raises is raised here; items that nobody has begun by then are dropped.
    """
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, items)


def default_threads() -> int:
    """The cores that this process may use; half of them above four, as the rest are mostly hyper-threads.

    More threads than a container's CPU quota has cores would wait for each other most of the time.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = available if available <= 4 else available // 2
    quota = cpu_quota()
    return threads if quota is None else max(1, min(threads, int(quota)))


def cpu_quota() -> float | None:
    """The cores that the control group of this process may use up at a time; None where there is no limit."""
    with contextlib.suppress(OSError, ValueError):  # version 2: "200000 100000", or "max 100000"
        quota, period = (CGROUPS / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        folder = CGROUPS / "cpu"
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if int(quota) <= 0 else int(quota) / int(period)
    return None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

"""The processor: how many threads to run on it, work that they share, and its name."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TypeVar

from .blas import one_blas_thread

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yields work(item) of each item, in order, while `threads` threads work on the items that follow.

    Each of them uses one thread of BLAS. What `work` raises is raised here; items that nobody has begun by then are
    dropped.
    """
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(work, items)


def default_threads() -> int:
    """The cores that this process may use; half of them above four, as the rest are mostly hyper-threads.

    More threads than a container's CPU quota has cores would wait for each other most of the time.
    """
    available = _available()
    return _within_quota(available if available <= 4 else available // 2)


def usable_cores() -> int:
    """The cores that this process may use, and that its CPU quota is enough for."""
    return _within_quota(_available())


def _available() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _within_quota(threads: int) -> int:
    quota = cpu_quota()
    return threads if quota is None else max(1, min(threads, int(quota)))


def cpu_quota() -> float | None:
    """The cores that the control groups of this process may use up at a time; None where there is no limit."""
    quotas = []
    for folder in _own_cgroups():
        # what cannot be understood is no limit
        with contextlib.suppress(
            OSError, ValueError, ZeroDivisionError
        ):  # version 2: "200000 100000", or "max 100000"
            quota, period = (folder / "cpu.max").read_text().split()
            quotas += [int(quota) / int(period)] if quota != "max" else []
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas += [int(quota) / int(period)] if int(quota) > 0 else []
    return min(quotas, default=None)


def _own_cgroups() -> Iterator[Path]:
    """The folders of the control groups that limit the processor time of this process, each within the next one."""
    # a container sees its own group as the root
    yield from (CGROUPS, CGROUPS / "cpu")
    lines = []
    with contextlib.suppress(OSError):
        lines = OWN_CGROUPS.read_text().splitlines()
    for line in lines:
        # "0::/user.slice/a.scope" in version 2, "1:cpu,cpuacct:/docker/a" in version 1
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # version 1 has a folder for each set of controllers, and usually a link to it for each of them
        roots = [CGROUPS / controllers, CGROUPS / "cpu"] if controllers else [CGROUPS]
        root, group = next((one for one in roots if one.is_dir()), CGROUPS), PurePosixPath(path)
        yield from (root / str(one).lstrip("/") for one in (group, *group.parents) if one.name)


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

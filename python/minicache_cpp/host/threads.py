"""The processor: how many threads to run on it, and its name."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def default_threads() -> int:
    """The cores this process may use; of many, half, as the others mostly are hyper-threads of the same."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return available if available <= 4 else available // 2


def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

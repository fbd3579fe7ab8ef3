"""The processor: how many threads to run on it, and its name."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path


def default_threads() -> int:
    """The cores that this process may use; half of them above four, as the rest are mostly hyper-threads."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return available if available <= 4 else available // 2


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

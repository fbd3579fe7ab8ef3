"""How much main memory this process may still take."""

from __future__ import annotations

from pathlib import Path

from ..errors import MiniCacheError
from .units import mib

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """The smaller of what the machine has free and what the cgroup (v2) still allows; None where neither is known."""
    limits = [limit for limit in (_machine(), _cgroup()) if limit is not None]
    return min(limits) if limits else None


def refuse_too_large(
    n_ctx: int,
    kv_bytes: int,
    weight_bytes: int,
    advice: str = "take a smaller --ctx, or a smaller cache with --config",
) -> None:
    """Refuses a context before anything is allocated: the kernel kills a process that uses too much memory."""
    available = available_bytes()
    if available is not None and kv_bytes + weight_bytes > available:
        beside = f" beside {mib(weight_bytes)} of weights" if weight_bytes else ""
        raise MiniCacheError(
            f"a context of {n_ctx:,} tokens needs {mib(kv_bytes)}{beside}, and only {mib(available)} of "
            f"memory is free; {advice}"
        )


def _machine() -> int | None:
    try:
        for line in (PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup() -> int | None:
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        # there is no cgroup v2, or no limit: then memory.max is "max"
        return None
    # cached file pages count as used, but the kernel gives them up when memory is short
    return max(0, limit - used + int(stat.get("inactive_file", 0)))

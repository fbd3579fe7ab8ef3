"""Numbers of bytes, written for people."""

from __future__ import annotations

MIB = 1024 * 1024


def mib(n_bytes: float) -> str:
    """Bytes as MiB, with as many digits as tell something."""
    value = n_bytes / MIB
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 0.1 else 4}f} MiB"

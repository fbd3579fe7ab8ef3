"""Numbers, written for people."""

from __future__ import annotations

import math

MIB = 1024 * 1024


def mib(n_bytes: float) -> str:
    """Bytes as MiB, with about three significant digits."""
    value = n_bytes / MIB
    return f"{value:,.{0 if value >= 1000 else 1 if value >= 100 else 2 if value >= 0.1 else 4}f} MiB"


def digits(value: float, significant: int = 3) -> str:
    """A number with its first significant digits, without an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, significant - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"

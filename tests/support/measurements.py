"""Results in the form in which `minicache-test perf --json` writes them."""

from __future__ import annotations

from typing import Any


def result(name: str, us: float, gbps: float = 5.0) -> dict[str, Any]:
    """One result, with quartiles 0.1 ms from the median."""
    return {"name": name, "median_us": us, "q1_us": us - 100, "q3_us": us + 100, "gbps": gbps}

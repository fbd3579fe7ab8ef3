"""The root of the project, and paths that CI sets in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def required(variable: str, what: str, default: Path | None = None) -> Path:
    """Returns a path from the environment. Without it the test is skipped, or fails if MINICACHE_REQUIRE_ALL=1."""
    value = os.environ.get(variable)
    path = Path(value).resolve() if value else default
    if path is not None and path.exists():
        return path
    reason = f"{variable}={path} does not exist" if path else f"{variable} is not set: {what}"
    if os.environ.get("MINICACHE_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)

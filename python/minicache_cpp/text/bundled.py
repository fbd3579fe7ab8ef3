"""The text that comes with the package, written for it: some to calibrate with, other text to evaluate on."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def calibration_files() -> list[Path]:
    """Text of many kinds, which codes and basis matrices are fitted to."""
    return sorted((FOLDER / "calibration").glob("*.txt"))


def evaluation_files() -> list[Path]:
    """Text of the same kinds on other matters, which nothing is fitted to."""
    return sorted((FOLDER / "evaluation").glob("*.txt"))

"""The text that comes with the package, written for it: some to calibrate with, other to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import MiniCacheError

FOLDER = Path(__file__).resolve().parent
MOST_BYTES = 8 * 2**20  # of each file that is read; ample for every context there is


def calibration_files() -> list[Path]:
    """Text of many kinds, for what is fitted to a model."""
    return sorted((FOLDER / "calibration").glob("*.txt"))


def evaluation_files() -> list[Path]:
    """Text of the same kinds on other matters, which nothing is fitted to."""
    return sorted((FOLDER / "evaluation").glob("*.txt"))


def read_texts(paths: Sequence[str | Path]) -> str:
    """The texts one after the other, of a very long one its beginning."""
    return "\n\n".join(_read(Path(path)) for path in paths)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise MiniCacheError(f"the text {path} does not exist") from None
    except OSError as error:
        raise MiniCacheError(f"the text {path} can't be read: {error.strerror or error}") from None
    if len(data) > MOST_BYTES:
        # cut at a line, so in no character; a file without lines loses at most the bytes of one
        data = data[: data.rfind(b"\n", 0, MOST_BYTES)] if b"\n" in data else data[: MOST_BYTES - 3]
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start >= MOST_BYTES - 8:
            return data[: error.start].decode("utf-8")
        raise MiniCacheError(f"the text {path} is not UTF-8 (byte {error.start}); convert it first") from None

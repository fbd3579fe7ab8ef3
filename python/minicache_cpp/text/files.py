"""Reads UTF-8 text from files: whole, or any part of many files without reading the rest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import MiniCacheError
from ..host.files import refuse_streams

MOST_BYTES = 8 * 2**20  # that read_texts() reads of each file; ample for every context there is


class Texts:
    """UTF-8 files one after the other, as one text of `size` bytes. Raises MiniCacheError if a file cannot be read."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.files = [(path, _size(path)) for path in map(Path, paths)]
        self.size = sum(size for _, size in self.files)

    def read(self, start: int, n_bytes: int) -> str:
        """The text of these bytes, with a blank line between files; a character that is cut off is left out."""
        pieces = []
        for path, size in self.files:
            if start < size and n_bytes > 0:
                pieces.append(_read(path, start, min(n_bytes, size - start)))
                n_bytes -= min(n_bytes, size - start)
            start = max(0, start - size)
        return "\n\n".join(pieces)


def read_text(path: Path, what: str = "text") -> str:
    """All of a file, which messages call `what`. Raises MiniCacheError where it cannot be read or is not UTF-8."""
    return _read(path, 0, _size(path, what), what)


def read_texts(paths: Sequence[str | Path]) -> str:
    """The texts one after the other; of one above MOST_BYTES the beginning, up to the end of a line if it has lines."""
    return "\n\n".join(_beginning(Path(path)) for path in paths)


def _beginning(path: Path) -> str:
    size = _size(path)
    text = _read(path, 0, min(size, MOST_BYTES))
    return text if size <= MOST_BYTES else text.rpartition("\n")[0] or text


def _size(path: Path, what: str = "text") -> int:
    with _explained(path, what):
        if path.is_dir():
            raise MiniCacheError(f"the {what} {path} is a directory; name its files")
        refuse_streams(path)
        return path.stat().st_size


def _read(path: Path, start: int, n_bytes: int, what: str = "text") -> str:
    with _explained(path, what), path.open("rb") as file:
        file.seek(start)
        data = file.read(n_bytes)
    first = 0  # of the bytes that do not belong to a character before `start`
    while start > 0 and first < min(3, len(data)) and data[first] & 0xC0 == 0x80:
        first += 1
    try:
        return data[first:].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.end == len(data) - first:
            return data[first : first + error.start].decode("utf-8")
        raise MiniCacheError(
            f"the {what} {path} is not UTF-8 (byte {start + first + error.start}); convert it first"
        ) from None


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise MiniCacheError(f"the {what} {path} does not exist") from None
    except OSError as error:
        raise MiniCacheError(f"the {what} {path} cannot be read: {error.strerror or error}") from None

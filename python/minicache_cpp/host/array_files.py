"""Arrays in files.

NumPy writes arrays through the C library and does not look whether the last part, up to 4095 bytes, has reached the
disk: where the disk is full, the file is cut short without an error. And where it sees an error, it loses the number.
So arrays are written here through Python's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .files import replacing


class WholeArray(np.ndarray[Any, Any]):
    """An array whose tofile(), which other packages call, writes all of it or raises OSError."""

    @classmethod
    def of(cls, array: NDArray[Any]) -> WholeArray:
        return np.ascontiguousarray(array).view(cls)

    def tofile(self, file: IO[bytes], *_: Any) -> None:  # type: ignore[override]
        file.write(self.reshape(-1).view(np.uint8).data)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Replaces a file by this array, in the format of np.save(). Raises OSError where it cannot be written whole."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        WholeArray.of(array).tofile(file)

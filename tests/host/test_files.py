"""Files that are replaced as a whole or not at all, and disks without room."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.host.array_files import WholeArray, save_array
from minicache_cpp.host.files import begins_with, has_no_room, refuse_to_write, replacing, reserve
from support.disks import LIMITS, files_of_at_most


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as unfinished:
        unfinished.write_text("half\udc80", encoding="utf-8")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_are_the_systems_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "missing" / "file") as unfinished:
        unfinished.write_text("there is no such folder")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file"):
        pass  # nothing was written


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "file[1].json"
    abandoned, fresh = (path.with_name(f"{path.name}.{pid}.part") for pid in (1, 2))
    others = tmp_path / "other.json.1.part"
    for one in (abandoned, fresh, others):
        one.write_text("half")
    for one in (abandoned, others):
        os.utime(one, (0, 0))
    with replacing(path) as unfinished:
        unfinished.write_text("new")
    assert sorted(tmp_path.iterdir()) == sorted([path, fresh, others])


def is_mine(path: Path) -> bool:
    return begins_with(path, b"mine", b"ours")


def test_only_a_file_of_the_same_kind_may_be_replaced(tmp_path: Path) -> None:
    for name, content in (("new", None), ("mine", b"mine, all of it"), ("ours", b"ours")):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        refuse_to_write(tmp_path / name, "a file of mine", is_mine)
    for name, content in (("other", b"not mine"), ("short", b"min"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            MiniCacheError, match=f"{name} is there already and is not a file of mine; give the"
        ):
            refuse_to_write(tmp_path / name, "a file of mine", is_mine)
    for path in (tmp_path, tmp_path / "none" / "file", tmp_path / "mine" / "file"):
        with pytest.raises(MiniCacheError, match="give the path of a file in a folder that exists"):
            refuse_to_write(path, "a file of mine", is_mine)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no pipes with names")
def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(MiniCacheError, match="is not a file of mine"):
            refuse_to_write(path, "a file of mine", lambda one: pytest.fail(f"{one} was opened"))


def test_a_folder_in_which_nothing_can_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(MiniCacheError, match="file cannot be written: Permission denied"):
        refuse_to_write(tmp_path / "file", "a file of mine", is_mine)


def test_arrays_are_written_as_numpy_reads_them(tmp_path: Path) -> None:
    for array in (
        np.arange(1000, dtype=np.int8),
        np.arange(12.0).reshape(3, 4),
        np.zeros((0, 2), np.float16),
    ):
        save_array(tmp_path / "array.npy", array)
        found = np.load(tmp_path / "array.npy", mmap_mode="r" if array.size else None)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
        with (tmp_path / "bytes").open("wb") as file:
            WholeArray.of(array).tofile(file)
        assert (tmp_path / "bytes").read_bytes() == array.tobytes()


@LIMITS
@pytest.mark.parametrize("size", [1000, 4095, 5000, 100_000])
def test_an_array_without_room_is_an_error(tmp_path: Path, size: int) -> None:
    """NumPy itself says nothing where the last bytes, up to 4095, are lost."""
    path = tmp_path / "array.npy"
    path.write_bytes(b"old")
    with files_of_at_most(size - 500), pytest.raises(OSError) as caught:  # noqa: PT011  (of either number)
        save_array(path, np.zeros(size, np.int8))
    assert has_no_room(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("by_the_system", [True, False])
def test_a_reserved_file_has_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_the_system: bool
) -> None:
    if not by_the_system:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "file").open("wb") as file:
        reserve(file, 3_000_001)
    assert (tmp_path / "file").read_bytes() == bytes(3_000_001)


@LIMITS
@pytest.mark.parametrize("by_the_system", [True, False])
def test_room_that_is_not_there_is_not_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_the_system: bool
) -> None:
    if not by_the_system:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    path = tmp_path / "file"
    with pytest.raises(OSError) as caught, files_of_at_most(10_000), path.open("wb") as file:  # noqa: PT011
        reserve(file, 100_000)
    assert has_no_room(caught.value)


def test_what_an_error_was_raised_from_counts_too() -> None:
    full = MiniCacheError("the plan cannot be written")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert has_no_room(full)
    assert not has_no_room(MiniCacheError("something else"))
    assert not has_no_room(PermissionError(errno.EACCES, "Permission denied"))

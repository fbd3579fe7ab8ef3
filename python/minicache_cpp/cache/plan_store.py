"""Finds the plan of a model: beside it, among the plans that ship, or in the user's cache directory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import MiniCacheError, MiniCacheWarning
from ..host.user_cache import VARIABLE, cache_dir
from ..host.work_folder import is_writable
from ..modelfile.fingerprint import fingerprint, n_layers
from ..modelfile.gguf_file import GGUFFile
from ..models.table import plans_folder
from .plan_file import PlanFile

DEFAULT_RATIO = 5.0  # f16 bytes per cached token over the plan's, where the user names no target


def plan_path(file: GGUFFile) -> Path:
    """Where a calibration without an output file keeps the plan of a model."""
    return cache_dir() / "plans" / f"{fingerprint(file)}.gguf"


def check_plan_path(path: Path) -> None:
    """Raises MiniCacheError where a plan cannot be kept at plan_path(), before it is made."""
    if is_writable(path.parent) and not path.is_dir():
        return
    wrong = f"{path} is a folder" if path.is_dir() else f"no file can be written in {path.parent}"
    raise MiniCacheError(
        f"the plan cannot be kept: {wrong}; remove what is in the way, name another folder with {VARIABLE}, or give "
        "-o PLAN"
    )


def plan_beside(file: GGUFFile) -> Path:
    """Where a plan that is handed on with a model lies: model.plan.gguf beside model.gguf."""
    return file.path.with_name(f"{file.path.stem}.plan.gguf")


def shipped_plans(file: GGUFFile) -> list[Path]:
    """The plans of a model that ship with the package, those nearest to the default ratio first.

    Their names say which they are (FINGERPRINT-RATIO.gguf), so that no other plan has to be opened.
    """
    found = []
    for path in plans_folder().glob(f"{fingerprint(file)}-*.gguf"):
        with contextlib.suppress(ValueError):
            found.append((abs(float(path.stem.partition("-")[2]) - DEFAULT_RATIO), path))
    return [path for _, path in sorted(found)]


def refuse_other_model(plan_file: PlanFile, file: GGUFFile) -> None:
    """Raise MiniCacheError where a plan was made for another model than this one."""
    own = fingerprint(file)
    if plan_file.plan.fingerprint != own or plan_file.plan.n_layer != n_layers(file):
        raise MiniCacheError(
            f"the plan {plan_file} was made for another model ({plan_file.plan.fingerprint}, this one is {own}); "
            "make one with `minicache calibrate MODEL`"
        )


def warn(text: str) -> None:
    warnings.warn(text, MiniCacheWarning, stacklevel=3)


def find_plan(file: GGUFFile, on_note: Callable[[str], None] = warn) -> PlanFile | None:
    """The plan of a model, opened: the one beside it, or one that ships, or the one in the user's cache directory.

    on_note: called with the reason where there is a plan beside the model that cannot be used. Other plans that are
        damaged, of another version or of another model count as none, and so do folders that cannot be read.
    """
    beside = plan_beside(file)
    if beside.exists():
        try:
            return _usable(beside, file)
        except MiniCacheError as error:
            on_note(f"the plan beside the model is not used: {error}")
    for path in _usual_places(file):
        with contextlib.suppress(MiniCacheError, OSError):
            if path.exists():
                return _usable(path, file)
    return None


def _usual_places(file: GGUFFile) -> Iterator[Path]:
    yield from shipped_plans(file)
    with contextlib.suppress(MiniCacheError):
        yield plan_path(file)


def _usable(path: Path, file: GGUFFile) -> PlanFile:
    plan_file = PlanFile.open(path)
    refuse_other_model(plan_file, file)
    if plan_file.plan.mode == "aligned":
        raise MiniCacheError(f"{path} is an aligned plan, which is for study; name it to use it")
    return plan_file

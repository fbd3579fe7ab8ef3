"""The plans in the user's cache directory, found by the fingerprint of the model they were made for."""

from __future__ import annotations

from pathlib import Path

from ..errors import MiniCacheError
from ..host.user_cache import cache_dir
from ..modelfile.fingerprint import fingerprint
from ..modelfile.gguf_file import GGUFFile
from .plan_file import PlanFile


def plan_path(file: GGUFFile) -> Path:
    """Where the plan of a model is kept."""
    return cache_dir() / "plans" / f"{fingerprint(file)}.gguf"


def refuse_other_model(plan_file: PlanFile, file: GGUFFile) -> None:
    """Raise MiniCacheError where a plan was made for another model than this one."""
    own = fingerprint(file)
    if plan_file.plan.fingerprint != own:
        raise MiniCacheError(
            f"the plan {plan_file} was made for another model ({plan_file.plan.fingerprint}, this one is {own}); "
            "make one with `minicache calibrate MODEL`"
        )


def find_plan(file: GGUFFile) -> PlanFile | None:
    """The plan of a model, opened, if there is a usable one."""
    path = plan_path(file)
    if not path.exists():
        return None
    try:
        plan_file = PlanFile.open(path)
    except MiniCacheError:  # damaged, or of another version: as good as none
        return None
    return plan_file if plan_file.plan.fingerprint == fingerprint(file) else None

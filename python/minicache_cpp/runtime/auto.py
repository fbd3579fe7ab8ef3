"""minicache="auto": finds the plan of a model, makes one once, or does without."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..cache.plan_file import PlanFile
from ..cache.plan_store import find_plan
from ..cache.settings import F16, CacheSpec, MiniCache
from ..errors import CancelledError, MiniCacheError
from ..host.progress import OnProgress, Progress, is_terminal
from ..modelfile.ggml_types import GGML_TYPES
from ..modelfile.gguf_file import GGUFFile
from ..modelfile.shape import ModelShape
from ..native.model_shape import model_shape

VARIABLE = "MINICACHE_CALIBRATE"  # one of CHOICES, for programs that do not say which
CHOICES = ("once", "background", "never")
WITHOUT_PLAN = CacheSpec("q8_0", "q8_0")


@dataclass(frozen=True)
class Automatic:
    """What "auto" settled on."""

    spec: CacheSpec
    # whether a plan is to be made while the context is idle
    in_background: bool = False


def calibrate_choice(value: str | None, default: str = "once") -> str:
    """Whether models without a plan are calibrated: as given, as the environment says, or the default."""
    choice = value if value is not None else os.environ.get(VARIABLE) or default
    if choice not in CHOICES:
        source = f"calibrate={choice!r}" if value is not None else f"{VARIABLE}={choice}"
        raise MiniCacheError(f"{source} is none of 'once', 'background' and 'never'")
    return choice


def resolve(
    file: GGUFFile,
    calibrate: str | None = None,
    on_note: Callable[[str], None] = lambda text: None,
    arguments: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
    before_making: Callable[[], None] = lambda: None,
) -> Automatic:
    """How to keep the cache of a model: as its plan says, or plain where there is no plan and none is to be made now.

    arguments: those of llama_cpp.Llama, of which a calibration takes its threads and layers on the GPU.
    types: cache types that the caller gave, "type_k" and "type_v"; they apply to a plain cache.
    on_progress: called while a plan is made (progress.py); without it, a progress line is shown on stderr, unless that
        is no terminal and the arguments have verbose=False.
    before_making: called before a plan is made; what it raises ends the call.
    """
    choice = calibrate_choice(calibrate)
    plan_file = find_plan(file, on_note)
    if plan_file is None and choice == "once":
        before_making()
        plan_file = _make(file, on_note, arguments or {}, on_progress)
    if plan_file is not None:
        return Automatic(CacheSpec.of(MiniCache(plan=plan_file)))
    shape = model_shape(file)
    plain, given = without_plan(shape), types or {}
    spec = CacheSpec(given.get("type_k", plain.type_k), given.get("type_v", plain.type_v))
    if choice == "background" and not shape.unknown:
        on_note(
            f"this model has no plan, so its cache is plain {spec.name} this time; a plan is made while the model is "
            "idle, and the next start finds it"
        )
        return Automatic(spec, in_background=True)
    if choice != "once":
        on_note(
            f"this model has no plan, so its cache is plain {spec.name}; "
            f"`minicache calibrate {file.path}` makes one, which makes the cache smaller"
        )
    return Automatic(spec)


def machine(arguments: Mapping[str, Any]) -> tuple[int, int]:
    """The threads (0: the default) and the layers on the GPU that the arguments of Llama name."""
    return arguments.get("n_threads") or 0, int(arguments.get("n_gpu_layers", 0))


def without_plan(shape: ModelShape) -> CacheSpec:
    """The cache of a model that has no plan: q8_0 where its heads can have that."""
    fits = not shape.unknown and shape.divides_into(GGML_TYPES[WITHOUT_PLAN.type_k].block)
    return WITHOUT_PLAN if fits else F16


def _make(
    file: GGUFFile,
    on_note: Callable[[str], None],
    arguments: Mapping[str, Any],
    on_progress: OnProgress | None,
) -> PlanFile | None:
    """Calibrates the model; None where that is not possible or is cancelled, and the note says why."""
    from .plan_maker import make_plan

    on_note(
        'this model has no plan, so one is made now; calibrate="never" (--calibrate never) does without, and '
        '"background" makes it while the model is idle'
    )
    silent = on_progress is not None or not (is_terminal() or arguments.get("verbose", True))
    progress = Progress("calibrate", silent, on_progress)
    try:
        return make_plan(file, *machine(arguments), progress)
    except CancelledError as error:
        on_note(f"{error}, and this time the cache is a plain one")
    except MiniCacheError as error:
        on_note(f"the model cannot be calibrated, so its cache is a plain one: {error}")
    return None

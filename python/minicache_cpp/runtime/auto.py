"""minicache="auto": finds the plan of a model, makes one once, or does without."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..cache.plan_file import PlanFile
from ..cache.plan_store import DEFAULT_RATIO, find_plan
from ..cache.settings import CacheSpec, MiniCache
from ..errors import MiniCacheError
from ..modelfile.ggml_types import GGML_TYPES
from ..modelfile.gguf_file import GGUFFile
from ..modelfile.shape import ModelShape, model_shape

VARIABLE = "MINICACHE_CALIBRATE"  # "once" or "never", for programs that do not say which
CHOICES = ("once", "never")
WITHOUT_PLAN = CacheSpec("q8_0", "q8_0")


def calibrate_choice(value: str | None) -> str:
    """Whether models without a plan are calibrated: as given, as the environment says, or once."""
    choice = value if value is not None else os.environ.get(VARIABLE) or "once"
    if choice not in CHOICES:
        source = f"calibrate={choice!r}" if value is not None else f"{VARIABLE}={choice}"
        raise MiniCacheError(f"{source} is neither 'once' nor 'never'")
    return choice


def resolve(
    file: GGUFFile,
    calibrate: str | None = None,
    on_note: Callable[[str], None] = lambda text: None,
    arguments: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
) -> CacheSpec:
    """How to keep the cache of a model: as its plan says, or plain where there is no plan and none is to be made.

    arguments: those of llama_cpp.Llama, of which a calibration takes its threads and layers on the GPU.
    types: cache types that the caller gave, "type_k" and "type_v"; they apply to a plain cache.
    """
    choice = calibrate_choice(calibrate)
    plan_file = find_plan(file, on_note)
    if plan_file is None and choice == "once":
        plan_file = _make(file, on_note, arguments or {})
    if plan_file is not None:
        return CacheSpec.of(MiniCache(plan=plan_file))
    plain, given = without_plan(model_shape(file)), types or {}
    spec = CacheSpec(given.get("type_k", plain.type_k), given.get("type_v", plain.type_v))
    if choice == "never":
        on_note(
            f"this model has no plan, so its cache is plain {spec.name}; "
            f"`minicache calibrate {file.path}` makes one, which makes the cache smaller"
        )
    return spec


def without_plan(shape: ModelShape) -> CacheSpec:
    """The cache of a model that has no plan: q8_0 where its heads can have that."""
    block = GGML_TYPES[WITHOUT_PLAN.type_k].block
    sizes = {size for layer in shape.attention_layers for size in (layer.head_size_k, layer.head_size_v)}
    fits = not shape.unknown and all(size % block == 0 for size in sizes)
    return WITHOUT_PLAN if fits else CacheSpec("f16", "f16")


def _make(file: GGUFFile, on_note: Callable[[str], None], arguments: Mapping[str, Any]) -> PlanFile | None:
    """Calibrate the model; None where that is not possible, and the note says why."""
    from ..calibrate.calibration import calibrate
    from ..calibrate.options import Options
    from ..host.progress import Progress

    on_note('this model has no plan, so one is made now; calibrate="never" (--calibrate never) does without')
    threads, gpu_layers = arguments.get("n_threads"), int(arguments.get("n_gpu_layers", 0))
    options = Options(ratio=DEFAULT_RATIO, threads=threads or 0, gpu_layers=gpu_layers)
    progress = Progress("calibrate", silent=not sys.stderr.isatty())
    try:
        return PlanFile.open(calibrate(file, options, None, progress)["plan"])
    except MiniCacheError as error:
        on_note(f"the model cannot be calibrated, so its cache is a plain one: {error}")
        return None

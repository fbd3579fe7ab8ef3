"""minicache="auto": the plan of a model, found, made once, or done without."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .config import CacheSpec, MiniCache
from .errors import MiniCacheError
from .gguf_file import read_gguf
from .plans import find_plan

VARIABLE = "MINICACHE_CALIBRATE"  # "once" or "never", where a program does not say
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
    model_path: str | Path,
    calibrate: str | None = None,
    on_note: Callable[[str], None] = lambda text: None,
    gpu_layers: int = 0,
    threads: int | None = None,
) -> CacheSpec:
    """How to keep the cache of a model: as its plan says, or as q8_0 where there is no plan and none is to be made."""
    choice = calibrate_choice(calibrate)
    file = read_gguf(model_path)
    path = find_plan(file)
    if path is None and choice == "once":
        path = _make(model_path, on_note, gpu_layers, threads)
    if path is not None:
        return CacheSpec.of(MiniCache(plan=path))
    if choice == "never":
        on_note(
            f"no plan of this model is there, so its cache is plain q8_0; "
            f"`minicache calibrate {model_path}` makes one, which holds it smaller"
        )
    return WITHOUT_PLAN


def _make(
    model_path: str | Path, on_note: Callable[[str], None], gpu_layers: int, threads: int | None
) -> Path | None:
    from .calibrate import Options, calibrate
    from .chat import default_threads
    from .progress import Progress

    on_note("no plan of this model is there: it is calibrated now, once (calibrate='never' does without)")
    options = Options(
        ratio=5.0, threads=default_threads() if threads is None else threads, gpu_layers=gpu_layers
    )
    try:
        return Path(calibrate(model_path, options, None, Progress("calibrate"))["plan"])
    except MiniCacheError as error:
        on_note(f"the model can't be calibrated, so its cache is plain q8_0: {error}")
        return None

"""Makes the plan of a model for "auto", once for all processes."""

from __future__ import annotations

from ..cache.plan_file import PlanFile
from ..cache.plan_store import DEFAULT_RATIO, find_plan
from ..errors import MiniCacheError
from ..host.progress import Progress
from ..host.user_cache import VARIABLE, cache_dir
from ..host.work_folder import locked
from ..modelfile.fingerprint import fingerprint
from ..modelfile.gguf_file import GGUFFile
from ..reading.model import NativeModel


def make_plan(
    file: GGUFFile, threads: int, gpu_layers: int, progress: Progress, loaded: NativeModel | None = None
) -> PlanFile:
    """Calibrates a model, or waits for another process that does, and returns the plan.

    loaded: the model, where the caller has it; it stays open.

    Raises MiniCacheError where the model cannot be calibrated, and CancelledError where `progress` is cancelled.
    """
    from ..calibrate.calibration import calibrate
    from ..calibrate.options import Options

    options = Options(ratio=DEFAULT_RATIO, threads=threads, gpu_layers=gpu_layers)

    def on_wait() -> None:
        progress(0, "waiting for another process, which calibrates this model")

    try:
        with locked(cache_dir() / "calibrations" / f"{fingerprint(file)}.lock", on_wait):
            # what another process has made meanwhile
            found = find_plan(file, lambda text: None)
            return found or PlanFile.open(calibrate(file, options, None, progress, loaded)["plan"])
    except OSError as error:
        raise MiniCacheError(
            f"a plan cannot be kept: {error}; name a folder that can be written with {VARIABLE}"
        ) from error

"""Calibrates a model that is in use, while nothing else uses it."""

from __future__ import annotations

import atexit
import threading
from typing import Any

from ..cache.plan_file import PlanFile
from ..host.progress import OnProgress, Progress
from ..modelfile.gguf_file import GGUFFile
from ..reading.model import NativeModel
from .plan_maker import make_plan
from .usage import Usage

# seconds without a use of the model after which it counts as idle
IDLE = 1.0
# seconds between two looks at whether it is
LOOK = 0.1


class BackgroundCalibration:
    """The calibration of a loaded model, in a thread of its own.

    Before each step, of a second or a few, it waits until the model's own context has been idle for a second. The plan
    goes to the user's cache directory, where the next context with minicache="auto" finds it. The attributes may be
    read from any thread.

    fraction, stage: how far it is.
    plan: the plan, once there is one. error: why there will be none.
    """

    def __init__(
        self,
        file: GGUFFile,
        model: Any,
        usage: Usage,
        threads: int,
        gpu_layers: int,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.fraction, self.stage = 0.0, "waiting"
        self.plan: PlanFile | None = None
        self.error: Exception | None = None
        self._usage, self._on_progress = usage, on_progress
        self._cancelled = threading.Event()
        arguments = (file, model, threads, gpu_layers)
        # a daemon, because Python would otherwise wait for the whole calibration before it exits; cancel() is called
        # there
        self._thread = threading.Thread(
            target=self._run, args=arguments, name="minicache-calibration", daemon=True
        )
        atexit.register(self.cancel)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether it has ended, with a plan or with an error."""
        return not self._thread.is_alive()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it has ended, or for so many seconds; returns whether it has ended."""
        self._thread.join(timeout)
        return self.done

    def cancel(self) -> None:
        """Ends it after its current step. What it has done is kept, and the next calibration goes on from there."""
        self._cancelled.set()
        self._thread.join()
        atexit.unregister(self.cancel)

    def _run(self, file: GGUFFile, model: Any, threads: int, gpu_layers: int) -> None:
        progress = Progress("calibrate", silent=True, on_progress=self._go_on)
        try:
            self.plan = make_plan(file, threads, gpu_layers, progress, NativeModel.borrowed(model))
        except Exception as error:  # nothing above this thread could catch it
            self.error = error

    def _go_on(self, fraction: float, stage: str, detail: str) -> bool:
        self.fraction, self.stage = fraction, stage
        if self._on_progress is not None and self._on_progress(fraction, stage, detail) is False:
            return False
        while self._usage.idle_seconds < IDLE and not self._cancelled.wait(LOOK):
            pass
        return not self._cancelled.is_set()

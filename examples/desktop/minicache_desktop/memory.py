"""What the KV cache takes beside what f16 would take, and how full the context is."""

from __future__ import annotations

from PySide6.QtCore import QRectF, QSize, Qt
from PySide6.QtGui import QColor, QPainter, QPaintEvent
from PySide6.QtWidgets import QHBoxLayout, QLabel, QProgressBar, QSizePolicy, QVBoxLayout, QWidget

from .engine import Memory, mib
from .theme import Colors

THICK = 10  # pixels of a bar


class Bar(QWidget):
    """A bar whose length is a share of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.share = 0.0
        self._color = QColor()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    def sizeHint(self) -> QSize:
        return QSize(120, THICK)

    def show_share(self, share: float) -> None:
        self.share = share
        self.update()

    def show_in(self, color: str) -> None:
        self._color = QColor(color)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(self._color)
        if self.share > 0:
            width = max(THICK / 2, self.share * self.width())
            painter.drawRoundedRect(QRectF(0, 0, width, THICK), THICK / 2, THICK / 2)


class MemoryView(QWidget):
    """The bytes that were allocated for the cache, and those of an f16 cache of the same context."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: Memory | None = None
        self.ours, self.f16, self.summary, self.context = QLabel(), QLabel(), QLabel(wordWrap=True), QLabel()
        self.summary.setObjectName("muted")
        self._our_bar, self._f16_bar = Bar(), Bar()
        self.fill = QProgressBar(textVisible=False, accessibleName="How full the context is")
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(5)
        for name, value, bar in (
            ("This cache", self.ours, self._our_bar),
            ("As f16", self.f16, self._f16_bar),
        ):
            line = QHBoxLayout()
            line.addWidget(QLabel(name), 1)
            line.addWidget(value)
            layout.addLayout(line)
            layout.addWidget(bar)
            layout.addSpacing(3)
        layout.addWidget(self.summary)
        layout.addSpacing(10)
        line = QHBoxLayout()
        line.addWidget(QLabel("Context"), 1)
        line.addWidget(self.context)
        layout.addLayout(line)
        layout.addWidget(self.fill)
        self.show_memory(None)

    def show_memory(self, memory: Memory | None) -> None:
        self.memory = memory
        if memory is None:
            for label in (self.ours, self.f16, self.context):
                label.setText("–")
            self.summary.setText("No model is loaded.")
            self._our_bar.show_share(0)
            self._f16_bar.show_share(0)
            self.fill.setRange(0, 1)
            self.fill.setValue(0)
            return
        self.ours.setText(mib(memory.bytes))
        self.f16.setText(mib(memory.bytes_f16))
        most = max(memory.bytes, memory.bytes_f16, 1)
        self._our_bar.show_share(memory.bytes / most)
        self._f16_bar.show_share(memory.bytes_f16 / most)
        self.summary.setText(_summary(memory))
        self.show_tokens(memory.n_tokens)

    def show_tokens(self, n_tokens: int) -> None:
        """How many tokens the context holds at this moment."""
        if self.memory is not None:
            n_ctx = self.memory.n_ctx
            self.context.setText(f"{n_tokens:,} of {n_ctx:,} tokens")
            self.fill.setRange(0, n_ctx)
            self.fill.setValue(min(n_tokens, n_ctx))

    def show_in(self, colors: Colors) -> None:
        self._our_bar.show_in(colors.accent)
        self._f16_bar.show_in(colors.bar)


def _summary(memory: Memory) -> str:
    saved = memory.bytes_f16 - memory.bytes
    if saved <= 0:
        return "Nothing is saved with this cache."
    return f"{memory.bytes_f16 / memory.bytes:.1f} times smaller: {mib(saved)} saved."

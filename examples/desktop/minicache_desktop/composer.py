"""Where a message is written: Enter sends it, Shift+Enter begins a new line."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt, Signal
from PySide6.QtGui import QFocusEvent, QKeyEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QSizePolicy, QTextEdit, QToolButton

from .icons import icon
from .theme import Colors

MOST_LINES = 9  # after which the text scrolls


class Field(QTextEdit):
    """The text, which grows with its lines."""

    entered = Signal()
    focused = Signal(bool)

    def __init__(self) -> None:
        super().__init__(acceptRichText=False, tabChangesFocus=True, accessibleName="Message")
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.document().documentLayout().documentSizeChanged.connect(self._fit)
        self._fit()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        is_enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if is_enter and not event.modifiers() & Qt.KeyboardModifier.ShiftModifier:
            self.entered.emit()
        else:
            super().keyPressEvent(event)

    def focusInEvent(self, event: QFocusEvent) -> None:
        super().focusInEvent(event)
        self.focused.emit(True)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        super().focusOutEvent(event)
        self.focused.emit(False)

    def _fit(self) -> None:
        line = self.fontMetrics().lineSpacing()
        margin = 2 * self.document().documentMargin()
        lines = min(self.document().size().height(), MOST_LINES * line + margin)
        self.setFixedHeight(int(max(lines, line + margin)) + 2)


class Composer(QFrame):
    """The field, and the button beside it that sends or, during an answer, stops."""

    sent = Signal(str)
    stopped = Signal()

    def __init__(self) -> None:
        super().__init__(objectName="composer")
        self.field = Field()
        self.button = QToolButton(objectName="send")
        self.button.setFixedSize(34, 34)
        self.button.setIconSize(QSize(20, 20))
        layout = QHBoxLayout(self)
        layout.setContentsMargins(14, 6, 7, 6)
        layout.addWidget(self.field)
        layout.addWidget(self.button, alignment=Qt.AlignmentFlag.AlignBottom)
        self._ready, self._answering, self._color = False, False, ""
        self.field.entered.connect(self._send)
        self.field.textChanged.connect(self._update)
        self.field.focused.connect(self._frame)
        self.button.clicked.connect(self._press)

    def show_state(self, ready: bool, answering: bool, hint: str) -> None:
        """ready: whether a message may be sent. answering: whether there is something to stop."""
        self._ready, self._answering = ready, answering
        self.field.setPlaceholderText(hint)
        self._update()

    def show_in(self, colors: Colors) -> None:
        self._color = colors.on_accent
        self._update()

    def put_back(self, text: str) -> None:
        """Text that was sent and has not been answered; what was written meanwhile stays below it."""
        written = self.field.toPlainText()
        self.field.setPlainText(f"{text}\n{written}" if written else text)
        self.field.moveCursor(self.field.textCursor().MoveOperation.End)

    def _press(self) -> None:
        if self._answering:
            self.stopped.emit()
        else:
            self._send()

    def _send(self) -> None:
        text = self.field.toPlainText().strip()
        if self._ready and text:
            self.field.clear()
            self.sent.emit(text)

    def _update(self) -> None:
        name = "Stop the answer (Esc)" if self._answering else "Send (Enter)"
        self.button.setToolTip(name)
        self.button.setAccessibleName(name)
        if self._color:
            self.button.setIcon(icon("stop" if self._answering else "send", self._color))
        has_text = bool(self.field.toPlainText().strip())
        self.button.setEnabled(self._answering or (self._ready and has_text))

    def _frame(self, focused: bool) -> None:
        self.setProperty("focused", focused)
        self.style().unpolish(self)
        self.style().polish(self)

"""The bar above the chat: which model answers, and what can be done with the chat."""

from __future__ import annotations

from PySide6.QtCore import QSize, Qt
from PySide6.QtGui import QAction, QKeySequence, QPainter, QPaintEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QSizePolicy, QToolButton, QVBoxLayout

from .icons import icon
from .theme import Colors

KEYS = {
    "sidebar": ("Model and memory", "Ctrl+B"),
    "new": ("New chat", "Ctrl+N"),
    "open": ("Open a chat …", "Ctrl+O"),
    "save": ("Save the chat …", "Ctrl+S"),
    "theme": ("Light or dark", "Ctrl+D"),
    "settings": ("Settings", "Ctrl+,"),
}


class Line(QLabel):
    """A line that ends with dots where it is too long, and does not make the window wider."""

    def __init__(self, **properties: object) -> None:
        super().__init__(**properties)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Preferred)
        self.setTextFormat(Qt.TextFormat.PlainText)

    def paintEvent(self, event: QPaintEvent) -> None:
        text = self.fontMetrics().elidedText(self.text(), Qt.TextElideMode.ElideRight, self.width())
        QPainter(self).drawText(self.rect(), Qt.AlignmentFlag.AlignVCenter, text)


class TopBar(QFrame):
    """Title and actions. Each action is a button with a key, and `actions_by_name` has it for whoever connects it."""

    def __init__(self) -> None:
        super().__init__(objectName="topbar")
        self.title, self.subtitle = Line(objectName="title"), Line(objectName="muted")
        self.actions_by_name: dict[str, QAction] = {}
        self._buttons: dict[str, QToolButton] = {}
        for name, (text, key) in KEYS.items():
            action = QAction(text, self, shortcut=QKeySequence(key))
            action.setToolTip(
                f"{text} ({action.shortcut().toString(QKeySequence.SequenceFormat.NativeText)})"
            )
            button = QToolButton(accessibleName=text)
            button.setDefaultAction(action)
            button.setIconSize(QSize(20, 20))
            self.actions_by_name[name], self._buttons[name] = action, button
        texts = QVBoxLayout()
        texts.setSpacing(0)
        texts.addWidget(self.title)
        texts.addWidget(self.subtitle)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(10, 7, 10, 7)
        layout.setSpacing(4)
        layout.addWidget(self._buttons["sidebar"])
        layout.addSpacing(6)
        layout.addLayout(texts, 1)
        for name in ("new", "open", "save", "theme", "settings"):
            layout.addWidget(self._buttons[name])

    def show_model(self, title: str, subtitle: str) -> None:
        self.title.setText(title)
        self.subtitle.setText(subtitle)
        self.subtitle.setVisible(bool(subtitle))

    def show_in(self, colors: Colors, dark: bool) -> None:
        for name, action in self.actions_by_name.items():
            shown = ("light" if dark else "dark") if name == "theme" else name
            action.setIcon(icon(shown, colors.text))

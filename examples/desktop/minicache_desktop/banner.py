"""A line above the message field: an error, or a note, which may offer something to do."""

from __future__ import annotations

from collections.abc import Callable

from PySide6.QtCore import QSize, Qt
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QToolButton

from .icons import icon
from .theme import Colors


class Banner(QFrame):
    """One sentence, hidden until there is one."""

    def __init__(self) -> None:
        super().__init__(objectName="banner")
        self.label = QLabel(wordWrap=True)
        self.label.setTextFormat(Qt.TextFormat.PlainText)
        self.label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.action = QPushButton()
        self.action.hide()
        self._close = QToolButton(toolTip="Hide this", accessibleName="Hide this")
        self._close.setIconSize(QSize(14, 14))
        self._close.clicked.connect(self.hide)
        self.action.clicked.connect(self._act)
        self._do: Callable[[], None] | None = None
        self._colors: Colors | None = None
        layout = QHBoxLayout(self)
        layout.setContentsMargins(14, 8, 8, 8)
        layout.addWidget(self.label, 1)
        layout.addWidget(self.action)
        layout.addWidget(self._close)
        self.hide()

    @property
    def text(self) -> str:
        """What is shown; "" for nothing."""
        return self.label.text() if not self.isHidden() else ""

    @property
    def kind(self) -> str:
        return str(self.property("kind"))

    def error(self, text: str) -> None:
        self._show("error", text, "", None)

    def note(self, text: str, action: str = "", do: Callable[[], None] | None = None) -> None:
        """action: what a button beside the note says; `do` is called when it is pressed."""
        self._show("note", text, action, do)

    def show_in(self, colors: Colors) -> None:
        self._colors = colors
        self._draw()

    def _show(self, kind: str, text: str, action: str, do: Callable[[], None] | None) -> None:
        self.setProperty("kind", kind)
        self.label.setText(text)
        self.label.setAccessibleName(text)
        self.action.setText(action)
        self.action.setVisible(bool(action))
        self._do = do
        for one in (self, self.label):
            one.style().unpolish(one)
            one.style().polish(one)
        self._draw()
        self.show()

    def _draw(self) -> None:
        if self._colors is not None:
            color = self._colors.on_error if self.kind == "error" else self._colors.on_note
            self._close.setIcon(icon("close", color))

    def _act(self) -> None:
        self.hide()
        if self._do is not None:
            self._do()

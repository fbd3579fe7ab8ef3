"""One message of the chat: a question in a bubble, or an answer as a page of its own."""

from __future__ import annotations

from PySide6.QtCore import Qt
from PySide6.QtGui import QResizeEvent
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QSizePolicy, QVBoxLayout, QWidget

from .parts import Part, split
from .texts import CodeBox, TextBox
from .theme import Colors

BUBBLE = 0.82  # of the width, at most


class Question(QWidget):
    """What the user said, on the right, as wide as it is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.text = text
        self._box = TextBox("Your message")
        self._box.setPlainText(text)
        self._bubble = QFrame(objectName="bubble")
        inside = QVBoxLayout(self._bubble)
        inside.setContentsMargins(14, 9, 14, 9)
        inside.addWidget(self._box)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addStretch(1)
        layout.addWidget(self._bubble)

    def show_in(self, colors: Colors) -> None:
        """Nothing in it depends on the theme but what the style sheet does."""

    def resizeEvent(self, event: QResizeEvent) -> None:
        super().resizeEvent(event)
        margins = self._bubble.layout().contentsMargins()
        sides = margins.left() + margins.right()
        self._bubble.setFixedWidth(min(self._box.width_of_text() + sides, int(BUBBLE * self.width())))


class Answer(QFrame):
    """What the model says, as it grows: prose in Markdown, and blocks of code."""

    def __init__(self, colors: Colors) -> None:
        super().__init__(objectName="answer")
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.text = ""
        self._colors = colors
        self._shown: list[tuple[Part, QWidget]] = []
        self._remark = QLabel(objectName="muted", wordWrap=True)
        self._remark.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._parts = QVBoxLayout()
        self._parts.setSpacing(10)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(6)
        layout.addLayout(self._parts)
        layout.addWidget(self._remark)
        self.remark("Reading …")

    def remark(self, text: str) -> None:
        """What stands below the answer in small letters."""
        self._remark.setText(text)
        self._remark.setVisible(bool(text))

    def show_text(self, text: str) -> None:
        """Shows the answer as far as it is. Only what has changed is laid out again."""
        self.text = text
        parts = split(text)
        for number, part in enumerate(parts):
            if number < len(self._shown) and self._shown[number][0] == part:
                continue
            if number < len(self._shown) and self._shown[number][0].is_code == part.is_code:
                widget = self._shown[number][1]
                self._shown[number] = part, widget
            else:
                self._drop(number)
                widget = CodeBox() if part.is_code else TextBox("Answer")
                self._parts.addWidget(widget)
                self._shown.append((part, widget))
            self._fill(part, widget)
        self._drop(len(parts))

    def show_in(self, colors: Colors) -> None:
        """Shows all of it in other colours."""
        self._colors = colors
        for part, widget in self._shown:
            self._fill(part, widget)

    def _fill(self, part: Part, widget: QWidget) -> None:
        if isinstance(widget, CodeBox):
            widget.show_code(part.text, part.language, self._colors)
        elif isinstance(widget, TextBox):
            widget.show_markdown(part.text, self._colors)

    def _drop(self, first: int) -> None:
        """Removes the parts from this one on."""
        for _, widget in self._shown[first:]:
            self._parts.removeWidget(widget)
            widget.deleteLater()
        del self._shown[first:]

"""The messages so far, one below the other, which follow the answer as it grows."""

from __future__ import annotations

from PySide6.QtCore import Qt, QTimer
from PySide6.QtGui import QFont
from PySide6.QtWidgets import QHBoxLayout, QLabel, QScrollArea, QVBoxLayout, QWidget

from .message import Answer, Question
from .theme import Colors

WIDEST = 760  # pixels of a column that is easy to read
FRAME = 40  # milliseconds between two pictures of an answer that grows
NEAR = 40  # pixels from the end, within which the view follows the answer


class Transcript(QScrollArea):
    """The chat. Pieces of an answer are collected and shown a few times in a second."""

    def __init__(self, colors: Colors) -> None:
        super().__init__(objectName="transcript", widgetResizable=True, accessibleName="Chat")
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        # always there, so that the chat does not move when it becomes longer than the window
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
        self._colors = colors
        self._messages: list[Question | Answer] = []
        self._text = ""
        self._follows = True
        self._welcome = self._make_welcome()
        self._column = QWidget(objectName="column", maximumWidth=WIDEST)
        self._layout = QVBoxLayout(self._column)
        self._layout.setContentsMargins(4, 24, 4, 24)
        self._layout.setSpacing(22)
        self._layout.addWidget(self._welcome, 1000)
        self._layout.addStretch(1)
        page = QWidget(objectName="transcript")
        centred = QHBoxLayout(page)
        centred.setContentsMargins(18, 0, 18, 0)
        centred.addStretch(1)
        centred.addWidget(self._column, 1000)
        centred.addStretch(1)
        self.setWidget(page)
        self._frame = QTimer(self, interval=FRAME, singleShot=True)
        self._frame.timeout.connect(self._show)
        bar = self.verticalScrollBar()
        bar.rangeChanged.connect(self._follow)
        bar.valueChanged.connect(lambda value: setattr(self, "_follows", value >= bar.maximum() - NEAR))

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Who said what, as it is shown."""
        return [("user" if isinstance(one, Question) else "assistant", one.text) for one in self._messages]

    @property
    def remark(self) -> str:
        """What stands below the last answer."""
        last = self._messages[-1] if self._messages else None
        return last._remark.text() if isinstance(last, Answer) else ""

    def greet(self, title: str, text: str) -> None:
        """What an empty chat says."""
        self._title.setText(title)
        self._hint.setText(text)

    def show_all(self, messages: list[dict[str, str]]) -> None:
        """Shows these messages in place of those before."""
        self._frame.stop()
        while self._messages:
            self._remove(self._messages[-1])
        for one in messages:
            if one["role"] == "user":
                self._add(Question(one["content"]))
            else:
                answer = Answer(self._colors)
                answer.remark("")
                answer.show_text(one["content"])
                self._add(answer)
        self._follows = True

    def begin(self, question: str) -> None:
        """Shows a question, and the place of its answer."""
        self._add(Question(question))
        self._add(Answer(self._colors))
        self._text = ""
        self._follows = True
        self._follow()

    def add_text(self, text: str) -> None:
        """A further piece of the answer."""
        if not self._text:
            self._last().remark("")
        self._text += text
        if not self._frame.isActive():
            self._frame.start()

    def end(self, text: str, remark: str) -> None:
        """The answer is complete."""
        self._frame.stop()
        self._text = text
        self._show()
        self._last().remark(remark)

    def take_back(self) -> str:
        """Removes the last question, with its answer, and returns it."""
        self._frame.stop()
        self._remove(self._messages[-1])
        question = self._messages[-1].text
        self._remove(self._messages[-1])
        return question

    def show_in(self, colors: Colors) -> None:
        self._colors = colors
        for one in self._messages:
            one.show_in(colors)

    def _make_welcome(self) -> QWidget:
        welcome = QWidget()
        self._title = QLabel(objectName="welcome", alignment=Qt.AlignmentFlag.AlignCenter)
        font = QFont(self.font())
        font.setPointSizeF(font.pointSizeF() * 1.7)
        self._title.setFont(font)
        self._hint = QLabel(objectName="muted", alignment=Qt.AlignmentFlag.AlignCenter, wordWrap=True)
        layout = QVBoxLayout(welcome)
        layout.addStretch(2)
        layout.addWidget(self._title)
        layout.addSpacing(8)
        layout.addWidget(self._hint)
        layout.addStretch(3)
        return welcome

    def _last(self) -> Answer:
        answer = self._messages[-1]
        assert isinstance(answer, Answer)
        return answer

    def _add(self, message: Question | Answer) -> None:
        self._messages.append(message)
        self._layout.insertWidget(self._layout.count() - 1, message)
        self._welcome.hide()

    def _remove(self, message: Question | Answer) -> None:
        self._messages.remove(message)
        self._layout.removeWidget(message)
        message.deleteLater()
        self._welcome.setVisible(not self._messages)

    def _show(self) -> None:
        self._last().show_text(self._text)

    def _follow(self) -> None:
        if self._follows:
            self.verticalScrollBar().setValue(self.verticalScrollBar().maximum())

"""The widgets that a message is made of: text as tall as it is, and blocks of code."""

from __future__ import annotations

import math

from PySide6.QtCore import QSize, QSizeF, Qt, QUrl
from PySide6.QtGui import (
    QColor,
    QDesktopServices,
    QFont,
    QFontDatabase,
    QGuiApplication,
    QImage,
    QTextBlock,
    QTextBlockFormat,
    QTextCharFormat,
    QTextCursor,
    QTextDocument,
    QTextFrameFormat,
    QTextTable,
    QWheelEvent,
)
from PySide6.QtWidgets import (
    QFrame,
    QHBoxLayout,
    QLabel,
    QPlainTextEdit,
    QSizePolicy,
    QTextBrowser,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from .icons import icon
from .theme import Colors

# a model's answer is text: it may neither bring HTML nor load anything
MARKDOWN = QTextDocument.MarkdownFeature.MarkdownDialectGitHub | QTextDocument.MarkdownFeature.MarkdownNoHTML
LARGER = 1.08  # than the text of buttons
LINE_HEIGHT = 130.0  # percent
GAP, LIST_GAP, HEADING_GAP = 9, 3, 16  # pixels above a paragraph, a point of a list, a heading


class TextBox(QTextBrowser):
    """Text that can be selected, without a frame, and as tall as it is."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.setAccessibleName(name)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.setOpenLinks(False)
        self.anchorClicked.connect(open_page)
        self.setTabChangesFocus(True)
        font = self.font()
        font.setPointSizeF(font.pointSizeF() * LARGER)
        self.setFont(font)
        self.document().setDocumentMargin(0)
        self.document().setIndentWidth(24)
        self.document().documentLayout().documentSizeChanged.connect(self._fit)

    def show_markdown(self, text: str, colors: Colors) -> None:
        self.document().setMarkdown(text, MARKDOWN)
        self._style(colors)

    def width_of_text(self) -> int:
        """The width that the text would have without a limit."""
        copy = self.document().clone()
        copy.setTextWidth(-1)
        return math.ceil(copy.idealWidth()) + 1

    def loadResource(self, kind: int, name: QUrl) -> object:
        # an empty picture: for no picture at all, Qt would look for a file of that name
        empty = QImage(1, 1, QImage.Format.Format_ARGB32)
        empty.fill(Qt.GlobalColor.transparent)
        return empty

    def wheelEvent(self, event: QWheelEvent) -> None:
        event.ignore()  # the whole chat scrolls

    def _fit(self, size: QSizeF) -> None:
        self.setFixedHeight(math.ceil(size.height()))

    def _style(self, colors: Colors) -> None:
        """Gives lines and paragraphs room, tables thin lines, and pieces of code a ground of their own."""
        cursor, block = QTextCursor(self.document()), self.document().begin()
        while block.isValid():
            cursor.setPosition(block.position())
            shape = block.blockFormat()
            shape.setLineHeight(LINE_HEIGHT, QTextBlockFormat.LineHeightTypes.ProportionalHeight.value)
            if block != self.document().begin() and not cursor.currentTable():
                shape.setTopMargin(
                    HEADING_GAP if shape.headingLevel() else LIST_GAP if block.textList() else GAP
                )
            shape.setBottomMargin(0)
            cursor.setBlockFormat(shape)
            for start, length in _code_in(block):
                cursor.setPosition(start)
                cursor.setPosition(start + length, QTextCursor.MoveMode.KeepAnchor)
                code = QTextCharFormat()
                code.setBackground(QColor(colors.code))
                cursor.mergeCharFormat(code)
            block = block.next()
        for frame in self.document().rootFrame().childFrames():
            if isinstance(frame, QTextTable):
                table = frame.format()
                table.setBorderCollapse(True)
                table.setBorderBrush(QColor(colors.border))
                table.setBorderStyle(QTextFrameFormat.BorderStyle.BorderStyle_Solid)
                table.setBorder(1)
                table.setCellPadding(6)
                table.setTopMargin(GAP)
                frame.setFormat(table)


def open_page(url: QUrl) -> None:
    """Opens a link of an answer in the browser; one to anything but a page of the web is not followed."""
    if url.scheme() in ("http", "https"):
        QDesktopServices.openUrl(url)


def _code_in(block: QTextBlock) -> list[tuple[int, int]]:
    """Where pieces of code stand in a paragraph: their positions and lengths."""
    return [
        (one.start + block.position(), one.length)
        for one in block.textFormats()
        if one.format.fontFixedPitch()
    ]


class Code(QPlainTextEdit):
    """The text of a block of code."""

    def wheelEvent(self, event: QWheelEvent) -> None:
        if abs(event.angleDelta().x()) > abs(event.angleDelta().y()):
            super().wheelEvent(event)
        else:
            event.ignore()  # the whole chat scrolls


def fixed_font(beside: QWidget) -> QFont:
    """The system's font for code, a little smaller than the text beside it."""
    font = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    font.setPointSizeF(beside.font().pointSizeF() * 0.95)
    return font


class CodeBox(QFrame):
    """A block of code, with its language and a button that copies it. Long lines scroll."""

    def __init__(self) -> None:
        super().__init__(objectName="code")
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self._language = QLabel(objectName="muted")
        self._copy = QToolButton(toolTip="Copy this code", accessibleName="Copy this code")
        self._copy.setIconSize(QSize(15, 15))
        self._copy.clicked.connect(self.copy)
        self.code = Code(readOnly=True, accessibleName="Code")
        self.code.setFrameShape(QFrame.Shape.NoFrame)
        self.code.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.code.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.code.setTabChangesFocus(True)
        self.code.setFont(fixed_font(self))
        self.code.document().setDocumentMargin(0)
        self.code.horizontalScrollBar().rangeChanged.connect(self._fit)
        head = QHBoxLayout()
        head.addWidget(self._language, 1)
        head.addWidget(self._copy)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(12, 4, 6, 8)
        layout.setSpacing(2)
        layout.addLayout(head)
        layout.addWidget(self.code)

    def show_code(self, text: str, language: str, colors: Colors) -> None:
        self._language.setText(language or "code")
        self._copy.setIcon(icon("copy", colors.muted))
        if text != self.code.toPlainText():
            self.code.setPlainText(text)
        self._fit()

    def _fit(self) -> None:
        """As tall as the text, and the scroll bar below it where a line is longer than the window is wide."""
        lines = self.code.blockCount() * self.code.fontMetrics().lineSpacing()
        bar = self.code.horizontalScrollBar()
        self.code.setFixedHeight(math.ceil(lines) + 4 + (bar.sizeHint().height() if bar.maximum() else 0))

    def copy(self) -> None:
        QGuiApplication.clipboard().setText(self.code.toPlainText())

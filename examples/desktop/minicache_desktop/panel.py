"""The panel on the right: the system message, how answers are chosen, and the theme."""

from __future__ import annotations

from PySide6.QtCore import QTimer, Signal
from PySide6.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFrame,
    QLabel,
    QPlainTextEdit,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from .scrolled import fill_with_scrolled
from .settings import RANDOM, Settings
from .theme import CHOICES

WIDTH = 270
PAUSE = 400  # milliseconds without a key, after which the system message counts as written


class SettingsPanel(QFrame):
    """Writes what is chosen into the Settings at once."""

    changed = Signal()  # the system message or the sampling
    theme_changed = Signal()

    def __init__(self, settings: Settings) -> None:
        super().__init__(objectName="settings")
        self.setFixedWidth(WIDTH)
        self._settings = settings
        self.system = QPlainTextEdit(
            objectName="field", accessibleName="System message", tabChangesFocus=True
        )
        self.system.setPlaceholderText("You answer in one sentence.")
        self.system.setFixedHeight(110)
        self.temperature = QDoubleSpinBox(
            minimum=0.0, maximum=2.0, singleStep=0.1, accessibleName="Temperature"
        )
        self.seed = QSpinBox(minimum=RANDOM, maximum=2**31 - 1, accessibleName="Seed")
        self.seed.setSpecialValueText("Another one each time")
        self.max_tokens = QSpinBox(maximum=2**20, singleStep=64, accessibleName="Longest answer in tokens")
        self.max_tokens.setSpecialValueText("No limit")
        self.threads = QSpinBox(maximum=256, accessibleName="Threads")
        self.threads.setSpecialValueText("Automatic")
        self.theme = QComboBox(accessibleName="Theme")
        for choice in CHOICES:
            self.theme.addItem("As the system" if choice == "system" else choice.capitalize(), choice)
        page = QWidget()
        layout = QVBoxLayout(page)
        layout.setContentsMargins(16, 16, 16, 16)
        layout.setSpacing(6)
        for heading, widget, remark in (
            ("System message", self.system, "It is used from the next new chat on."),
            ("Temperature", self.temperature, "0 always takes the likeliest token."),
            ("Seed", self.seed, ""),
            ("Longest answer", self.max_tokens, "In tokens."),
            ("Threads", self.threads, "They are used when a model is loaded next."),
            ("Theme", self.theme, ""),
        ):
            layout.addWidget(QLabel(heading, objectName="heading"))
            layout.addWidget(widget)
            if remark:
                layout.addWidget(QLabel(remark, objectName="muted", wordWrap=True))
            layout.addSpacing(12)
        layout.addStretch()
        fill_with_scrolled(self, page)
        self._pause = QTimer(self, interval=PAUSE, singleShot=True)
        self._pause.timeout.connect(self._take)
        self.show_settings()
        self.system.textChanged.connect(self._pause.start)
        for box in (self.temperature, self.seed, self.max_tokens, self.threads):
            box.lineEdit().setTextMargins(6, 0, 0, 0)
            box.valueChanged.connect(self._take)
        self.theme.activated.connect(self._take_theme)

    def show_settings(self) -> None:
        """Shows what the Settings have."""
        settings = self._settings
        for widget in (self.system, self.temperature, self.seed, self.max_tokens, self.threads):
            widget.blockSignals(True)
        self.system.setPlainText(settings.system)
        self.temperature.setValue(settings.temperature)
        self.seed.setValue(settings.seed)
        self.max_tokens.setValue(settings.max_tokens)
        self.threads.setValue(settings.n_threads)
        for widget in (self.system, self.temperature, self.seed, self.max_tokens, self.threads):
            widget.blockSignals(False)
        self.theme.setCurrentIndex(self.theme.findData(settings.theme))

    def _take(self) -> None:
        settings = self._settings
        settings.system = self.system.toPlainText().strip()
        settings.temperature = self.temperature.value()
        settings.seed = self.seed.value()
        settings.max_tokens = self.max_tokens.value()
        settings.n_threads = self.threads.value()
        self.changed.emit()

    def _take_theme(self) -> None:
        self._settings.theme = self.theme.currentData()
        self.theme_changed.emit()

"""Dark and light: the colours, and the style sheet that is made of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template

from PySide6.QtCore import Qt, QTemporaryDir
from PySide6.QtGui import QColor, QPalette
from PySide6.QtWidgets import QApplication

from .icons import picture

CHOICES = ("system", "light", "dark")


@dataclass(frozen=True)
class Colors:
    """The colours of a theme, by what they are for."""

    window: str
    side: str
    field: str
    hover: str
    border: str
    text: str
    muted: str
    accent: str
    on_accent: str
    bubble: str
    code: str
    bar: str
    error: str
    on_error: str
    note: str
    on_note: str


LIGHT = Colors(
    window="#ffffff",
    side="#f5f6f8",
    field="#ffffff",
    hover="#e9ebf0",
    border="#dcdfe6",
    text="#1a1c21",
    muted="#626876",
    accent="#3457d5",
    on_accent="#ffffff",
    bubble="#e8edfc",
    code="#f5f6f8",
    bar="#c9ceda",
    error="#fdebeb",
    on_error="#99201f",
    note="#eaf1fe",
    on_note="#20407c",
)
DARK = Colors(
    window="#1b1d22",
    side="#15171b",
    field="#23262d",
    hover="#2b2f38",
    border="#343945",
    text="#e9ebf0",
    muted="#9aa1b1",
    accent="#86a0ff",
    on_accent="#10142a",
    bubble="#2a3350",
    code="#131519",
    bar="#4a5162",
    error="#3c2023",
    on_error="#ffb9b6",
    note="#1f2c45",
    on_note="#b9cdfa",
)

# it is removed at the end of the program
_folder = QTemporaryDir()

SHEET = Template("""
QWidget { color: $text; }
QMainWindow, #main, #transcript, #column { background: $window; }
#sidebar, #settings { background: $side; }
#sidebar { border-right: 1px solid $border; }
#settings { border-left: 1px solid $border; }
#topbar { background: $window; border-bottom: 1px solid $border; }
#heading { color: $muted; font-weight: 600; }
#title { font-weight: 600; }
#muted { color: $muted; }
#welcome { color: $text; font-weight: 600; }
QScrollArea { border: none; background: transparent; }
#sidebar QScrollArea > QWidget > QWidget, #settings QScrollArea > QWidget > QWidget { background: transparent; }

QPushButton { background: $field; border: 1px solid $border; border-radius: 7px; padding: 6px 12px; }
QPushButton:hover { background: $hover; }
QPushButton:focus { border-color: $accent; }
QPushButton:disabled { color: $muted; }
QPushButton#primary { background: $accent; color: $on_accent; border-color: $accent; font-weight: 600; }
QPushButton#primary:hover { border-color: $text; }
QToolButton { background: transparent; border: 1px solid transparent; border-radius: 7px; padding: 5px; }
QToolButton:hover { background: $hover; }
QToolButton:focus { border-color: $accent; }
QToolButton#send { background: $accent; border-radius: 17px; padding: 0; }
QToolButton#send:disabled { background: $bar; }
QToolButton#send:focus { border-color: $text; }

QComboBox, QSpinBox, QDoubleSpinBox, QPlainTextEdit#field {
    background: $field; border: 1px solid $border; border-radius: 7px; padding: 6px 8px;
    selection-background-color: $accent; selection-color: $on_accent;
}
QSpinBox, QDoubleSpinBox { padding-right: 24px; }
QComboBox::drop-down { border: none; width: 26px; }
QComboBox::down-arrow, QSpinBox::down-arrow, QDoubleSpinBox::down-arrow {
    image: url($down); width: 10px; height: 10px;
}
QSpinBox::up-arrow, QDoubleSpinBox::up-arrow { image: url($up); width: 10px; height: 10px; }
QSpinBox::up-button, QDoubleSpinBox::up-button, QSpinBox::down-button, QDoubleSpinBox::down-button {
    border: none; background: transparent; width: 22px;
}
QComboBox:focus, QSpinBox:focus, QDoubleSpinBox:focus, QPlainTextEdit#field:focus { border-color: $accent; }
QComboBox QAbstractItemView { background: $field; border: 1px solid $border; outline: none; padding: 4px; }
QComboBox QAbstractItemView::item { padding: 5px; }

#model { background: transparent; border: 1px solid transparent; border-radius: 9px; }
#model:hover { background: $hover; }
#model[current="true"] { background: $field; border-color: $accent; }

#composer { background: $field; border: 1px solid $border; border-radius: 18px; }
#composer[focused="true"] { border-color: $accent; }
#composer QTextEdit { background: transparent; border: none; }
#bubble { background: $bubble; border-radius: 14px; }
#bubble QTextBrowser, #answer QTextBrowser { background: transparent; border: none; }
#code { background: $code; border: 1px solid $border; border-radius: 9px; }
#code QPlainTextEdit { background: transparent; border: none; }
#banner[kind="error"] { background: $error; border-radius: 10px; }
#banner[kind="error"] QLabel { color: $on_error; }
#banner[kind="note"] { background: $note; border-radius: 10px; }
#banner[kind="note"] QLabel { color: $on_note; }

QProgressBar { background: $bar; border: none; border-radius: 3px; max-height: 6px; min-height: 6px; }
QProgressBar::chunk { background: $accent; border-radius: 3px; }
QScrollBar:vertical { background: transparent; width: 11px; margin: 2px; }
QScrollBar:horizontal { background: transparent; height: 11px; margin: 2px; }
QScrollBar::handle { background: $bar; border-radius: 3px; min-height: 30px; min-width: 30px; }
QScrollBar::handle:disabled { background: transparent; }
QScrollBar::add-line, QScrollBar::sub-line { width: 0; height: 0; }
QScrollBar::add-page, QScrollBar::sub-page { background: transparent; }
QToolTip { background: $field; color: $text; border: 1px solid $border; padding: 4px; }
""")


def is_dark(choice: str) -> bool:
    """Whether a choice of CHOICES means dark; "system" means what the desktop has."""
    if choice == "system":
        return QApplication.styleHints().colorScheme() == Qt.ColorScheme.Dark
    return choice == "dark"


def apply(app: QApplication, choice: str) -> Colors:
    """Gives the whole app the theme, and returns its colours."""
    scheme = {"light": Qt.ColorScheme.Light, "dark": Qt.ColorScheme.Dark}
    # the window's frame follows too, where the desktop lets it
    app.styleHints().setColorScheme(scheme.get(choice, Qt.ColorScheme.Unknown))
    colors = DARK if is_dark(choice) else LIGHT
    app.setPalette(_palette(colors))
    arrows = {name: _picture(name, colors.muted) for name in ("up", "down")}
    app.setStyleSheet(SHEET.substitute(asdict(colors), **arrows))
    return colors


def _picture(name: str, color: str) -> str:
    """The file of an icon: a style sheet takes pictures from files only."""
    path = Path(_folder.path()) / f"{name}-{color[1:]}.png"
    if not path.exists():
        picture(name, color, 40).save(str(path))
    return path.as_posix()


def _palette(colors: Colors) -> QPalette:
    """For what no style sheet reaches: texts with marks, placeholders, dialogs."""
    role = QPalette.ColorRole
    palette = QPalette()
    for roles, color in (
        ((role.Window, role.Button), colors.window),
        ((role.Base, role.ToolTipBase), colors.field),
        ((role.AlternateBase,), colors.code),
        ((role.WindowText, role.Text, role.ButtonText, role.ToolTipText), colors.text),
        ((role.PlaceholderText, role.Mid), colors.muted),
        ((role.Highlight, role.Link, role.LinkVisited, role.Accent), colors.accent),
        ((role.HighlightedText,), colors.on_accent),
    ):
        for one in roles:
            palette.setColor(one, QColor(color))
    return palette

"""The icons: lines in a square of 24, drawn in any colour and sharp at any size."""

from __future__ import annotations

from PySide6.QtCore import QByteArray, Qt
from PySide6.QtGui import QIcon, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

SIZE = 96  # pixels, enough for 24 on a screen of four times the density

PATHS = {
    "sidebar": "M4 5h16v14H4z M10 5v14",
    "new": "M12 5v14 M5 12h14",
    "open": "M3 7v11a1 1 0 0 0 1 1h16a1 1 0 0 0 1-1V9a1 1 0 0 0-1-1h-8l-2-3H4a1 1 0 0 0-1 1z",
    "save": "M12 4v11 M7 11l5 5 5-5 M5 20h14",
    "settings": "M4 7h9 M17 7h3 M4 17h3 M11 17h9 M13 7a2 2 0 1 0 4 0a2 2 0 1 0-4 0 M7 17a2 2 0 1 0 4 0a2 2 0 1 0-4 0",
    "light": "M8 12a4 4 0 1 0 8 0a4 4 0 1 0-8 0 M12 3v2 M12 19v2 M3 12h2 M19 12h2 M5.6 5.6l1.4 1.4 M17 17l1.4 1.4 "
    "M5.6 18.4L7 17 M17 7l1.4-1.4",
    "dark": "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
    "send": "M12 19V6 M6 12l6-6 6 6",
    "stop": "M8 8h8v8H8z",
    "copy": "M9 9h11v11H9z M5 15H4V4h11v1",
    "close": "M6 6l12 12 M18 6L6 18",
    "up": "M5 15l7-7 7 7",
    "down": "M5 9l7 7 7-7",
    "app": "M4 6h16 M4 12h11 M4 18h6",
}
FILLED = ("stop",)


def icon(name: str, color: str) -> QIcon:
    """An icon of PATHS."""
    return QIcon(picture(name, color))


def picture(name: str, color: str, size: int = SIZE) -> QPixmap:
    """The same as a picture of so many pixels."""
    fill = color if name in FILLED else "none"
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="{PATHS[name]}" fill="{fill}" '
        f'stroke="{color}" stroke-width="1.8" stroke-linecap="round" stroke-linejoin="round"/></svg>'
    )
    pixmap = QPixmap(size, size)
    pixmap.fill(Qt.GlobalColor.transparent)
    painter = QPainter(pixmap)
    QSvgRenderer(QByteArray(svg.encode())).render(painter)
    painter.end()
    return pixmap

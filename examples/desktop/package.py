#!/usr/bin/env python3
"""Packages the app by PyInstaller into a folder, and checks it: the packaged app answers, and its window is not blank.

    python examples/desktop/package.py build/desktop
    python examples/desktop/package.py build/desktop --model smollm2-135m --ask "Hello!"

The environment needs the package with its extra `desktop`, and PyInstaller. Without a screen, the check takes Xvfb if
that is there, and otherwise Qt's own platform "offscreen".
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "minicache-desktop"
SCREEN = "-screen 0 1280x900x24"
LATE = 180  # seconds for the start, the model and an answer
LEAST_COLORS = 50  # in a picture of a window that shows text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "folder", type=Path, help="where the app goes; what PyInstaller needs meanwhile lies there too"
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="a name or a file, for the check (default: %(default)s)"
    )
    parser.add_argument("--ask", default="Name three colours.", help="(default: %(default)s)")
    parser.add_argument("--no-check", action="store_true", help="do not start the app")
    args = parser.parse_args()
    folder = args.folder.resolve()
    app = build(folder)
    print(f"{app.parent}: {size(app.parent) / 1e6:.0f} MB")
    if not args.no_check:
        picture = folder / "window.png"
        check(app, args.model, args.ask, picture)
        print(f"it has answered: {picture}")
    return 0


def build(folder: Path) -> Path:
    """Packages the app and returns its program."""
    command = [
        *(
            sys.executable,
            "-m",
            "PyInstaller",
            "--noconfirm",
            "--log-level=WARN",
            "--windowed",
            f"--name={NAME}",
        ),
        *(f"--distpath={folder / 'dist'}", f"--workpath={folder / 'work'}", f"--specpath={folder}"),
        # models are fetched by pip, which nothing imports
        "--collect-all=pip",
        # of Qt, the app has widgets and pictures
        *(
            f"--exclude-module={name}"
            for name in ("PySide6.QtNetwork", "PySide6.QtQml", "PySide6.QtQuick", "tkinter")
        ),
        str(HERE / "main.py"),
    ]
    subprocess.run(command, check=True)
    suffix = ".exe" if sys.platform == "win32" else ""
    return folder / "dist" / NAME / f"{NAME}{suffix}"


def check(app: Path, model: str, question: str, picture: Path) -> None:
    """Starts the packaged app, has it answer, and looks whether its window shows something."""
    settings = picture.with_suffix(".ini")
    for path in (picture, settings):
        path.unlink(missing_ok=True)
    command = [
        str(app),
        "--settings",
        str(settings),
        "--model",
        model,
        "--ask",
        question,
        "--screenshot",
        str(picture),
    ]
    environment = dict(os.environ)
    # the packaged app must have everything of its own
    for name in ("PYTHONPATH", "MINICACHE_LIB_PATH", "LLAMA_CPP_LIB_PATH"):
        environment.pop(name, None)
    if sys.platform == "linux" and not (environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")):
        if shutil.which("xvfb-run"):
            command = ["xvfb-run", "-a", "-s", SCREEN, *command]
        else:
            environment["QT_QPA_PLATFORM"] = "offscreen"
    subprocess.run(command, check=True, env=environment, timeout=LATE)
    colors = colors_of(picture)
    if colors < LEAST_COLORS:
        raise SystemExit(f"{picture} has {colors} colours only; the window is blank")


def colors_of(picture: Path) -> int:
    """How many colours a picture has."""
    from PySide6.QtGui import QImage

    image = QImage(str(picture))
    return len({image.pixel(x, y) for x in range(0, image.width(), 2) for y in range(0, image.height(), 2)})


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    sys.exit(main())

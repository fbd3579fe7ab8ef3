"""Where the demo models are."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import MiniCacheError

NAME = "minicache-demo-q8_0.gguf"


def demo_model(name: str = NAME) -> Path:
    """The path of a demo model, in the package or in the source checkout that it was installed from or is run in.

    Raises MiniCacheError where there is none.
    """
    package = Path(__file__).resolve().parent.parent
    # an editable install, a .venv inside the checkout, the checkout as the current directory
    roots = [package, package.parent.parent, Path(sys.prefix).parent, Path.cwd()]
    for root in roots:
        if (path := root / "models" / name).is_file():
            return path
    raise MiniCacheError(
        f"the demo model models/{name} was not found; name a GGUF file, or run this in a source checkout"
    )

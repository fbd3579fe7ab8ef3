"""Where the bundled demo model is."""

from __future__ import annotations

import sys
from pathlib import Path

from .errors import MiniCacheError

NAME = "minicache-demo-q8_0.gguf"


def demo_model() -> Path:
    """The demo model: in the package, or in the source checkout that this was installed or is run from."""
    package = Path(__file__).resolve().parent
    # an editable install, a .venv inside the checkout, the checkout as the current directory
    roots = [package, package.parent.parent, Path(sys.prefix).parent, Path.cwd()]
    for root in roots:
        if (path := root / "models" / NAME).is_file():
            return path
    raise MiniCacheError(
        f"the demo model, models/{NAME}, is not here; name a GGUF file, or run this in a source checkout"
    )

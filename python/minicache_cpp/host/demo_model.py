"""Where the bundled models are."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import MiniCacheError

NAME = "minicache-demo-q8_0.gguf"
MHA_NAME = "minicache-demo-mha-q8_0.gguf"  # as many KV heads as query heads, of size 128


def demo_model(name: str = NAME) -> Path:
    """A demo model: in the package, or in the source checkout that this was installed or is run from."""
    package = Path(__file__).resolve().parent.parent
    # an editable install, a .venv inside the checkout, the checkout as the current directory
    roots = [package, package.parent.parent, Path(sys.prefix).parent, Path.cwd()]
    for root in roots:
        if (path := root / "models" / name).is_file():
            return path
    raise MiniCacheError(
        f"the demo model, models/{name}, is not here; name a GGUF file, or run this in a source checkout"
    )

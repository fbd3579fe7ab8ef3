"""Calibrations of tiny models, and the text that they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from minicache_cpp.calibrate.calibration import calibrate
from minicache_cpp.calibrate.options import Options

SENTENCE = "The quick brown fox, no. {}, jumps over the lazy dog; {} dogs bark. "


def write_sentences(path: Path) -> Path:
    """Writes a text of 200 sentences, no two of which are the same."""
    path.write_text("".join(SENTENCE.format(i, i * i) for i in range(200)))
    return path


def made(model: Path, text: Path, output: Path, **more: Any) -> dict[str, Any]:
    """Calibrates with few tokens and, unless `more` says otherwise, to a ratio of 5; returns what was found."""
    values = {"ratio": 5.0, "tokens": 1024, "threads": 1, "texts": (text,), **more}
    return calibrate(model, Options(**values), output)


def read_codec(path: str | Path, first: int) -> Any:
    """The codec of the group that starts with layer `first`, from a plan file, as bytes."""
    tensor = next(one for one in gguf.GGUFReader(path).tensors if one.name == f"group.{first}.codec")
    return np.array(tensor.data)

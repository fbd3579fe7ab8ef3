"""What was measured of a model, kept in a file between runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minicache_cpp import MiniCacheError
from minicache_cpp.evaluate.table import finite
from minicache_cpp.host.files import write_json
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import GGUFFile

from .figures import Config, Figure


@dataclass(frozen=True)
class Settings:
    """What the figures depend on besides the model."""

    n_ctx: int = 1024
    chunks: int = 2
    ubatch: int = 32
    tokens: int = 8192  # of text that basis matrices and codes are fitted to
    text: str = ""  # digest of the text that is measured on


class Results:
    """Everything measured so far, in a JSON file that is replaced after each batch of measurements."""

    def __init__(self, path: Path, identity: dict[str, Any], fresh: bool = False) -> None:
        self.path = path
        self.data: dict[str, Any] = {**identity, "rows": {}, "pairs": {}}
        if not fresh and path.exists():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
                same = {key: known[key] for key in identity} == identity
            except (ValueError, KeyError, TypeError):
                same = False
            if not same:
                raise MiniCacheError(
                    f"{path} holds results of another model, other settings or another version: "
                    "give another --out, or --fresh to replace them"
                )
            self.data = known

    @property
    def rows(self) -> dict[str, Any]:
        rows: dict[str, Any] = self.data["rows"]
        return rows

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, finite(self.data), indent=1)


def missing(figures: Iterable[Figure], results: Results) -> list[Config]:
    """The configurations that are not measured yet, each once."""
    found = {config.label: config for figure in figures for config in figure.configs}
    return [config for label, config in found.items() if label not in results.rows]


def identity(file: GGUFFile, settings: Settings) -> dict[str, Any]:
    """What must be the same for results to be comparable."""
    return {
        "version": 1,
        "model": file.path.name,
        "fingerprint": fingerprint(file),
        "weight_bytes": file.weight_bytes,
        "settings": asdict(settings),
    }

"""The models that can be fetched by name, as models/table.json lists them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MiniCacheError


@dataclass(frozen=True)
class Package:
    """A package of the Python package index that holds a model's file or a part of it."""

    name: str
    version: str
    # of the wheel
    sha256: str
    bytes: int
    # the path of the file or part inside the wheel
    member: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Model:
    """A row of the table."""

    name: str
    what: str
    # the number of tokens that it was trained for
    context: int
    licence: str
    # the line that is shown when the model is fetched
    notice: str
    # of the GGUF file
    bytes: int
    sha256: str
    # in the order in which their members make up the file
    packages: tuple[Package, ...]


def data_folder() -> Path:
    """The folder of the table and of the plans that ship, in the installed package or else in the source checkout."""
    here = Path(__file__).resolve().parent
    installed = here / "data"
    return installed if installed.is_dir() else here.parents[2] / "models"


def plans_folder() -> Path:
    """The folder of the plans that ship; it need not exist."""
    return data_folder() / "plans"


def read_table() -> dict[str, Model]:
    """The models by name, in the order of the table. Raises MiniCacheError where the table is missing."""
    path = data_folder() / "table.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MiniCacheError(
            f"the table of models cannot be read ({path}: {error.strerror or error}); install minicache-cpp again"
        ) from None
    return {row["name"]: _model(row) for row in rows}


def model_named(name: str, otherwise: str = "not the name of a model") -> Model:
    """The row of a name. Raises MiniCacheError where the table has none; `otherwise` says what the name then is."""
    table = read_table()
    if name not in table:
        raise MiniCacheError(f"{name} is {otherwise}; the names are {', '.join(table)}")
    return table[name]


def _model(row: dict[str, Any]) -> Model:
    return Model(**{**row, "packages": tuple(Package(**package) for package in row["packages"])})

"""Where the files of named models lie, and which file a name or a path means."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..errors import MiniCacheError
from ..host.paths import user_path
from ..host.units import mib
from ..host.user_cache import cache_dir
from .table import Model, model_named

DEMO = "smollm2-135m"  # what commands take where no MODEL is given


def models_folder() -> Path:
    """The folder of the models that were fetched, in the user's cache directory."""
    return cache_dir() / "models"


def model_path(model: Model) -> Path:
    """The path of a model's file, whether it is there or not."""
    return models_folder() / f"{model.name}.gguf"


def is_there(model: Model) -> bool:
    """Whether a model has been fetched. Its content was checked then, so only its size is compared."""
    path = model_path(model)
    return os.path.isfile(path) and os.path.getsize(path) == model.bytes


def path_if_there(model: Model) -> Path | None:
    """The path of a model that has been fetched; None where it has not been, or has no folder."""
    with contextlib.suppress(MiniCacheError):
        if is_there(model):
            return model_path(model)
    return None


def is_path(text: str) -> bool:
    """Whether a MODEL is a path: it exists as a file, has a separator, or ends with .gguf."""
    separators = [one for one in ("/", os.sep, os.altsep) if one]
    return text.endswith(".gguf") or any(one in text for one in separators) or os.path.isfile(text)


def stored_path(model: Model) -> Path:
    """The path of a model that has been fetched. Raises MiniCacheError where it has not been."""
    if not is_there(model):
        raise MiniCacheError(
            f"{model.name} is not there; `minicache models get {model.name}` fetches it ({mib(model.bytes)})"
        )
    return model_path(model)


def model_meant(text: str) -> Model:
    """The model that a MODEL names where it is no path.

    Raises MiniCacheError where the name is empty or the table lacks it.
    """
    if not text:
        raise MiniCacheError("the model's path is empty; give the path of a GGUF file or the name of a model")
    return model_named(text, "neither a file nor the name of a model")


def file_of(model: str | os.PathLike[str]) -> str:
    """The path that a program's model means: of a name the file in the store, and of a path itself.

    Raises MiniCacheError for a name that the table lacks, or whose model has not been fetched.
    """
    if isinstance(model, str) and not is_path(model):
        return str(stored_path(model_meant(model)))
    text = os.fspath(model)
    # what llama_cpp shows is what was given
    return str(user_path(text)) if text.startswith("~") else text

"""The model that a command is asked for; one that is named and not there is fetched."""

from __future__ import annotations

from pathlib import Path

from ..errors import MiniCacheError
from ..host.paths import user_path
from ..host.units import mib
from .store import DEMO, is_path, is_there, model_meant, model_path
from .table import model_named


def requested_model(text: str | None) -> Path:
    """The file of a command's MODEL: a path, a name, or None for the demo model.

    A named model that is not there is fetched, with its licence shown; the demo model is fetched only if it is named.
    Raises MiniCacheError for a name that the table lacks, and where a model cannot be fetched.
    """
    if text is None:
        demo = model_named(DEMO)
        if not is_there(demo):
            raise MiniCacheError(
                f"no MODEL is given and the demo model is not there; `minicache models get {DEMO}` fetches it "
                f"({mib(demo.bytes)})"
            )
        return model_path(demo)
    if is_path(text):
        return user_path(text)
    model = model_meant(text)
    if is_there(model):
        return model_path(model)
    # the command line stays quick without subprocess and zipfile
    from .fetch import fetch

    return fetch(model)

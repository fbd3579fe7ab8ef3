"""The models by name, for programs: what there is, and how to fetch one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..host.progress import OnProgress
from .store import path_if_there
from .table import Model, model_named, read_table


@dataclass(frozen=True)
class NamedModel:
    """A model that can be fetched by name, and where its file is."""

    name: str
    # one line for people
    what: str
    # of the GGUF file
    bytes: int
    # the number of tokens that it was trained for
    context: int
    licence: str
    # what to show to whoever fetches it, with the address of the licence's text
    notice: str
    # None where the model has not been fetched
    path: Path | None


def list_models() -> list[NamedModel]:
    """The models that can be fetched by name, in the order of the table."""
    return [_listed(model) for model in read_table().values()]


def fetch_model(name: str, on_progress: OnProgress | None = None) -> Path:
    """Fetches a model by its name, where it is not there yet, and returns the path of its file.

    on_progress: called with the fraction that is done (0 to 1), the stage and a detail of it, a few times in a second;
        if it returns False, the fetch ends with CancelledError, and the next one keeps what has arrived whole. Without
        it, the licence and the progress are shown on stderr.

    Raises MiniCacheError for a name that the table lacks, and for whatever prevents the fetch.
    """
    model = model_named(name)
    if path := path_if_there(model):
        return path
    # the list alone needs neither subprocess nor zipfile
    from .fetch import fetch

    return fetch(model, on_progress)


def _listed(model: Model) -> NamedModel:
    return NamedModel(
        model.name,
        model.what,
        model.bytes,
        model.context,
        model.licence,
        model.notice,
        path_if_there(model),
    )

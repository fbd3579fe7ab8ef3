"""`minicache models`: lists the models that can be fetched by name, fetches them, and removes them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ..errors import MiniCacheError
from ..host.output import show
from ..host.tables import aligned
from ..host.units import mib
from ..options import add_json_option
from .store import models_folder, path_if_there, stored_path
from .table import Model, model_named, read_table

EXAMPLE = "minicache models get smollm2-135m"
ACTIONS = ("list", "get", "path", "rm")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=ACTIONS,
        default=ACTIONS[0],
        help="list: show the models (default); get: fetch one and print its path; path: print the path of one that is "
        "there; rm: remove it",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the model, for get, path and rm")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """List the models, or do what is asked with one of them."""
    if args.action == "list":
        if args.name is not None:
            raise MiniCacheError(f"list takes no NAME; leave out {args.name}")
        models = list(read_table().values())
        show(json.dumps(listing(models), indent=2) if args.json else table(models))
        return 0
    if args.name is None:
        raise MiniCacheError(f"{args.action} needs a NAME; `minicache models` lists them")
    model = model_named(args.name)
    text = {"get": get, "path": path, "rm": rm}[args.action](model)
    show(json.dumps(row(model), indent=2) if args.json else text)
    return 0


def get(model: Model) -> str:
    """Fetches the model where it is not there, and returns its path."""
    from .fetch import fetch

    return str(path_if_there(model) or fetch(model))


def path(model: Model) -> str:
    return str(stored_path(model))


def rm(model: Model) -> str:
    from .fetch import remove

    return f"{model.name} is removed" if remove(model) else f"{model.name} is not there"


def listing(models: Sequence[Model]) -> dict[str, Any]:
    """The models as a JSON-ready object; the folder is null where there is none for them."""
    try:
        folder = str(models_folder())
    except MiniCacheError:
        folder = None
    return {"folder": folder, "models": [row(model) for model in models]}


def row(model: Model) -> dict[str, Any]:
    """The model as a JSON-ready object; its path is null where it has not been fetched."""
    return {
        "name": model.name,
        "what": model.what,
        "bytes": model.bytes,
        "context": model.context,
        "licence": model.licence,
        "notice": model.notice,
        "sha256": model.sha256,
        "path": str(path) if (path := path_if_there(model)) else None,
    }


def table(models: Sequence[Model]) -> str:
    """A line for each model, what each of them is, and where the files lie."""
    head = ["name", "size", "context", "licence", "fetched"]
    cells = [
        [one.name, mib(one.bytes), str(one.context), one.licence, "yes" if path_if_there(one) else "no"]
        for one in models
    ]
    lines = [*aligned([head, *cells]), "", *(f"{one.name}: {one.what}" for one in models)]
    try:
        where = f"They are kept in {models_folder()}."
    except MiniCacheError as error:
        where = f"None can be fetched: {error}."
    return "\n".join([*lines, "", where])

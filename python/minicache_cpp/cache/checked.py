"""Caches that were asked for by name, checked against a model before anything is built."""

from __future__ import annotations

from collections.abc import Iterable

from ..modelfile.gguf_file import GGUFFile
from ..modelfile.shape import model_shape
from .plan_store import refuse_other_model
from .settings import CacheSpec
from .size import kv_bytes


def checked_specs(file: GGUFFile, specs: Iterable[CacheSpec]) -> list[CacheSpec]:
    """Returns each cache once.

    Raises MiniCacheError where a plan was made for another model, where settings name layers that this model does not
    have, and where its heads cannot be kept in a cache type.
    """
    shape = model_shape(file)
    found = list(dict.fromkeys(specs))
    for spec in found:
        if spec.plan_file is not None:
            refuse_other_model(spec.plan_file, file)
        if not shape.unknown:
            kv_bytes(shape, spec, 1)
    return found

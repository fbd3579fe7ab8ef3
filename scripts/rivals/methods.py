"""The methods by name, and the parameters that a name may carry."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from minicache_cpp import MiniCacheError
from minicache_cpp.modelfile.ggml_types import CACHE_TYPES
from minicache_cpp.modelfile.gguf_file import GGUFFile
from minicache_cpp.modelfile.shape import ModelShape

from .kivi import Kivi
from .kvarn import KVarN
from .method import LayerMethod, Method
from .plain_types import PlainType
from .plan import PlanMethod
from .turboquant import TurboQuant
from .weights import Weights

RIVALS: dict[str, type[LayerMethod]] = {"kivi": Kivi, "kvarn": KVarN, "turboquant": TurboQuant}

NAME_HELP = (
    "a cache type such as q4_0, plan:PATH, or kivi, kvarn or turboquant with parameters, "
    "such as kivi:bits=4,residual=128, kvarn:k=4,v=2,sinks=0 or turboquant:k=3,v=3,qjl=0"
)


def method_of(name: str, file: GGUFFile, weights: Weights, n_ctx: int) -> Method:
    """The method of a name, for a model and a context of so many tokens.

    Raises MiniCacheError where there is none, or a parameter is wrong.
    """
    if name in CACHE_TYPES:
        return PlainType(weights.shape, name)
    kind, _, rest = name.partition(":")
    if kind == "plan" and rest:
        return PlanMethod.open(Path(rest), file, weights.shape, weights.rope, n_ctx)
    if kind in RIVALS:
        return _with_parameters(name, RIVALS[kind], rest, weights.shape)
    raise MiniCacheError(f"{name} is no method; give {NAME_HELP}")


def _with_parameters(name: str, method: type[LayerMethod], text: str, shape: ModelShape) -> Method:
    # all are int or float
    parameters = [one for one in fields(method) if one.name != "shape"]  # type: ignore[arg-type]
    defaults: dict[str, Any] = {one.name: one.default for one in parameters}
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        if key not in defaults:
            raise MiniCacheError(f"{name}: {key} is no parameter of it; it has {', '.join(defaults)}")
        try:
            given[key] = type(defaults[key])(value)
        except ValueError:
            raise MiniCacheError(f"{name}: {value!r} is no value of {key}; it must be a number") from None
    try:
        return method(shape, **given)  # type: ignore[call-arg]
    except MiniCacheError as error:
        raise MiniCacheError(f"{name}: {error}") from None

"""Settings as the native library takes, checks and parses them: the one place where both sides meet.

The library has the only parser of settings in text form (llama-minicache.h has its grammar) and the only check of their
ranges. What is here translates between its struct and MiniCache's fields. Other modules of this package import this one
inside functions, so that `import minicache_cpp` and `--help` do not load llama_cpp.
"""

from __future__ import annotations

import os
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import MiniCacheError
from ..modelfile.ggml_types import BY_NUMBER, GGML_TYPES
from ..native import binding
from ..native.binding import ffi, lib
from ..native.declarations import GGML_TYPE_COUNT

# keeps the arrays alive that a struct points to
_pointed_to: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

MAX_WINDOW = int(lib.LLAMA_MINICACHE_WINDOW_MAX)
MODES = ("slerp", "average", "aligned", "code", "plain")  # enum llama_minicache_mode


class Settings(Protocol):
    """MiniCache's fields; `native_plan` is a struct llama_minicache_plan *, or None."""

    @property
    def start(self) -> float | int: ...
    @property
    def groups(self) -> tuple[tuple[int, ...], ...] | None: ...
    @property
    def t(self) -> float: ...
    @property
    def retain(self) -> float: ...
    @property
    def window(self) -> int: ...
    @property
    def pool_type(self) -> str: ...
    @property
    def strict(self) -> bool: ...
    @property
    def mode(self) -> str: ...
    @property
    def first(self) -> tuple[int, str, str] | None: ...
    @property
    def last(self) -> tuple[int, str, str] | None: ...
    @property
    def native_plan(self) -> Any: ...


def native_params(minicache: Settings) -> Any:
    """The struct llama_minicache_params of these settings; it keeps alive what it points to."""
    params = ffi.new("struct llama_minicache_params *", lib.llama_minicache_default_params())
    params.strict = minicache.strict
    if minicache.native_plan is not None:
        params.plan = minicache.native_plan
        return params
    if isinstance(minicache.start, int):
        params.start_layer = minicache.start
    else:
        params.start, params.start_layer = minicache.start, -1
    if pairs := minicache.groups:
        layers = ffi.new("int32_t[]", [layer for pair in pairs for layer in pair])
        params.pairs, params.n_pairs = layers, len(pairs)
        _pointed_to[params] = layers
    params.t, params.retain, params.window = minicache.t, minicache.retain, minicache.window
    pool = minicache.pool_type
    params.pool_type = GGML_TYPE_COUNT if pool == "cache" else GGML_TYPES[pool].number
    params.mode = MODES.index(minicache.mode)
    for edge, given in ((params.first, minicache.first), (params.last, minicache.last)):
        if given is not None:
            edge.n_layer, *types = given
            edge.type_k, edge.type_v = (GGML_TYPES[name].number for name in types)
    return params


def check_settings(minicache: Settings) -> None:
    """Raises MiniCacheError where a value is out of its range."""
    binding.check(lib.llama_minicache_check_params(native_params(minicache)), "llama_minicache_check_params")


def parse_settings(text: str) -> dict[str, Any]:
    """The arguments of MiniCache that a text such as "slerp:start=0.5,type=q4_0" stands for.

    A plan is in "plan" as the native library's handle. Raises MiniCacheError with what is wrong with the text.
    """
    params = ffi.new("struct llama_minicache_params *")
    types = {name: ffi.new("enum ggml_type *") for name in ("type_k", "type_v")}
    if not isinstance(text, str) or "\0" in text:
        raise MiniCacheError(f"{text!r} is not a text of settings such as slerp:start=0.5,type=q4_0")
    done = lib.llama_minicache_parse_params(os.fsencode(text), params, *types.values())
    binding.check(done, "llama_minicache_parse_params")
    if params.plan != ffi.NULL:
        return {"plan": params.plan, "strict": params.strict}
    pairs = [params.pairs[i] for i in range(2 * params.n_pairs)]
    return {
        "start": params.start_layer if params.start_layer >= 0 else single_precision(params.start),
        "pairs": list(zip(pairs[::2], pairs[1::2], strict=True)) or None,
        "t": single_precision(params.t),
        "retain": single_precision(params.retain),
        "window": params.window,
        "pool_type": "cache" if params.pool_type == GGML_TYPE_COUNT else BY_NUMBER[params.pool_type].name,
        "strict": params.strict,
        "mode": MODES[params.mode],
        "first": _edge(params.first),
        "last": _edge(params.last),
        **{name: BY_NUMBER[one[0]].name for name, one in types.items() if one[0] != GGML_TYPE_COUNT},
    }


def _edge(edge: Any) -> tuple[int, str, str] | None:
    types = BY_NUMBER[edge.type_k].name, BY_NUMBER[edge.type_v].name
    return (edge.n_layer, *types) if edge.n_layer else None


def start_layer(start: float, n_layer: int) -> int:
    """The layer that a fraction of a model's layers means."""
    return int(lib.llama_minicache_start_layer(start, n_layer))


def retain_block(retain: float) -> int:
    """How many consecutive cells share one retained token; 0 if none is retained."""
    return int(lib.llama_minicache_retain_block(retain))


def window_at(window: int, pool_type: str, n_cells: int) -> int:
    """How many tokens of a stream of so many cells a plan keeps uncoded whose window has so many of this type."""
    return int(lib.llama_minicache_window_at(window, GGML_TYPES[pool_type].number, n_cells))


def window_first(window: int) -> int:
    """How many of a window's tokens are the first of their stream, which stay in it; the others are the latest."""
    return int(lib.llama_minicache_window_first(window))


def single_precision(value: float) -> float:
    """The shortest decimal number that rounds to this one in single precision."""
    return float(str(np.float32(value)))

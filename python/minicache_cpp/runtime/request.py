"""How the context of a Llama is to be made, settled in one place before anything is built.

Everything that can be refused is refused here: wrong types, settings that contradict each other, a plan of another
model, and a context that memory cannot hold.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.checked import refuse_other_models
from ..cache.plan_file import PlanFile
from ..cache.plan_store import DEFAULT_RATIO
from ..cache.settings import F16, CacheSpec, MiniCache
from ..errors import MiniCacheError
from ..host.files import begins_with
from ..host.progress import OnProgress
from ..host.threads import usable_cores
from ..modelfile.ggml_types import GGML_TYPES, is_quantized, plain_cache_type
from ..modelfile.gguf_file import MAGIC, GGUFFile, read_gguf
from ..models.store import file_of
from ..native.model_shape import model_shape
from ..options import MOST, MOST_THREADS
from . import auto
from .context_memory import ContextMemory

NAMES = ("type_k", "type_v")
# the least and the most of each; 0 stands for the model's training context, for n_batch, and for llama_cpp's own choice
COUNTS = {
    "n_ctx": (0, MOST),
    "n_batch": (1, MOST),
    "n_ubatch": (0, MOST),
    "n_threads": (0, MOST_THREADS),
    "n_threads_batch": (0, MOST_THREADS),
}
MAY_BE_NONE = ("n_threads", "n_threads_batch")
AUTO = "auto"
# f16 bytes over those of any plan that "auto" finds
LARGEST_RATIO = 16.0


@dataclass(frozen=True)
class Given:
    """The arguments of Llama that say how the cache is kept, as the caller gave them."""

    minicache: object = None
    calibrate: str | None = None
    type_k: str | int | None = None
    type_v: str | int | None = None
    flash_attn: bool | None = None

    @property
    def automatic(self) -> bool:
        return isinstance(self.minicache, str) and self.minicache == AUTO

    def types(self) -> dict[str, str]:
        """The names of the cache types that are given."""
        values = {name: getattr(self, name) for name in NAMES}
        return {name: plain_cache_type(one, name).name for name, one in values.items() if one is not None}


@dataclass(frozen=True)
class Request:
    """What llama_cpp.Llama is asked for."""

    path: str
    spec: CacheSpec
    flash_attn: bool
    memory: ContextMemory
    # the model, if a plan of it is to be made while the context is idle
    calibrated_later: GGUFFile | None = None

    @property
    def types(self) -> dict[str, Any]:
        """The cache types by number, as llama_cpp takes them."""
        return {name: GGML_TYPES[getattr(self.spec, name)].number for name in NAMES}


def resolve(
    model: str | os.PathLike[str] | GGUFFile,
    given: Given,
    arguments: dict[str, Any],
    on_note: Callable[[str], None] = lambda text: None,
    on_progress: OnProgress | None = None,
) -> Request:
    """Settle how the context is made; with minicache="auto" that may calibrate the model.

    model: the path or the name of a model, or its file where the header has been read already.
    arguments: the other arguments of llama_cpp.Llama; `swa_full` is set where it is not given.
    on_note: called with what "auto" has to say. on_progress: called while it calibrates.
    """
    if not isinstance(model, GGUFFile):
        model = file_of(model)
    _refuse_numbers(arguments)
    if arguments.get("vocab_only") and given.minicache is not None:
        raise MiniCacheError(
            "vocab_only=True loads no layers, so there is no cache to keep; leave it or minicache out"
        )
    if given.minicache is not None:
        # a cache of sliding-window layers that is as long as the context would take most of the memory
        arguments.setdefault("swa_full", False)
    path = str(model.path) if isinstance(model, GGUFFile) else model
    _refuse_other_encodings(path)
    file = _header(model)
    _limit(arguments, file)
    types = given.types()
    spec, later = None if given.automatic else _spec_of(given.minicache), None
    if given.calibrate is not None:
        auto.calibrate_choice(given.calibrate)
    if given.automatic:
        _refuse_without_flash(given)
        readable = read_gguf(model) if file is None else file
        # a context that would not fit even with the smallest plan is refused at once
        f16 = ContextMemory(readable, F16, arguments)
        f16.refuse_too_large(share=1 / LARGEST_RATIO)

        def before_making() -> None:
            f16.refuse_too_large(share=1 / DEFAULT_RATIO)

        settled = auto.resolve(
            readable, given.calibrate, on_note, arguments, types, on_progress, before_making
        )
        spec, later = settled.spec, readable if settled.in_background else None
    elif spec is None:
        spec = CacheSpec(types.get("type_k", "f16"), types.get("type_v", "f16"))
        if is_quantized(GGML_TYPES[spec.type_v]) and not given.flash_attn:
            raise MiniCacheError(f"type_v={given.type_v!r} needs flash attention; add flash_attn=True")
    else:
        _refuse_without_flash(given)
    if given.minicache is not None and (spec.minicache is not None or not given.automatic):
        _refuse_other_types(spec, types)
    if file is not None:
        refuse_other_models([spec], file)
    memory = ContextMemory(file, spec, arguments)
    memory.refuse_too_large()
    flash_attn = bool(given.flash_attn) if given.minicache is None else True
    return Request(path, spec, flash_attn, memory, later)


def _refuse_numbers(arguments: dict[str, Any]) -> None:
    """Refuses counts that llama_cpp would pass on as other numbers, or as numbers that end the process."""
    for name, (least, most) in COUNTS.items():
        value = arguments.get(name, least)
        if value is None and name in MAY_BE_NONE:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise MiniCacheError(f"{name}={value!r}: it must be a whole number from {least} to {most:,}")


def _limit(arguments: dict[str, Any], file: GGUFFile | None) -> None:
    """Limits what llama_cpp would take too much of."""
    # it counts the machine's cores, of which this process may be allowed fewer
    cores, usable = multiprocessing.cpu_count(), usable_cores()
    if usable < cores:
        arguments["n_threads"] = arguments.get("n_threads") or min(max(1, cores // 2), usable)
        arguments["n_threads_batch"] = arguments.get("n_threads_batch") or usable
    # a batch is limited to the context, but only after it has made room for the logits of each of its tokens
    n_ctx = arguments.get("n_ctx", 512) or (model_shape(file).n_ctx_train if file is not None else 0)
    if n_ctx and arguments.get("n_batch", 0) > n_ctx:
        arguments["n_batch"] = n_ctx


def _refuse_other_encodings(path: str) -> None:
    """Refuses what llama_cpp cannot pass on, before a calibration."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise MiniCacheError(
            f"llama_cpp opens no model whose path is not UTF-8, as {path!a} is; rename the file"
        ) from None


def _header(model: str | os.PathLike[str] | GGUFFile) -> GGUFFile | None:
    """The model's header; None where llama.cpp has the better words for what is wrong with the file.

    Raises MiniCacheError for what llama.cpp would wait for or have no words for: pipes, devices, and files that are no
    GGUF file.
    """
    if isinstance(model, GGUFFile):
        return model
    try:
        return read_gguf(model)
    except (MiniCacheError, OSError):
        path = Path(model)
        if path.exists() and not (path.is_file() and begins_with(path, MAGIC)):
            raise
        return None


def _spec_of(minicache: object) -> CacheSpec | None:
    """The cache that is asked for by name; None for llama_cpp's own."""
    if minicache is None:
        return None
    if isinstance(minicache, CacheSpec):
        return minicache
    if isinstance(minicache, MiniCache):
        return CacheSpec.of(minicache)
    if isinstance(minicache, str):
        return CacheSpec.parse(minicache)
    if isinstance(minicache, os.PathLike | PlanFile):
        return CacheSpec.of(MiniCache(plan=minicache))
    raise MiniCacheError(
        f'minicache={minicache!r} is neither None, "auto", a plan, MiniCache(...), CacheSpec(...) nor their text'
    )


def _refuse_without_flash(given: Given) -> None:
    if given.flash_attn is False:
        raise MiniCacheError("MiniCache needs flash attention; leave flash_attn out, or make it True")


def _refuse_other_types(spec: CacheSpec, types: dict[str, str]) -> None:
    for name, value in types.items():
        if value != getattr(spec, name):
            raise MiniCacheError(
                f"{name} is given twice: {value} to Llama and {getattr(spec, name)} by minicache; "
                "leave it out in Llama"
            )

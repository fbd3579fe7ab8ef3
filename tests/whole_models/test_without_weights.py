"""Models without weights, which llama.cpp's programs load to find out how much memory a context would take (--fit)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minicache_cpp import MiniCache, MiniCacheError
from minicache_cpp.native import binding
from minicache_cpp.native.binding import ffi, lib, llama_h
from oracle.model import Config
from support import contexts, tiny_models
from support.contexts import Context, ContextRefused
from support.loaded import Loaded
from support.plans import ALL_PAIRS, aligned, coded


class EmptyModel(contexts.Model):
    """A model of whose file only the header was read."""

    def __init__(self, path: Path) -> None:
        params = llama_h.llama_model_default_params()
        params.n_gpu_layers, params.no_alloc, params.load_mode = 0, True, llama_h.LLAMA_LOAD_MODE_NONE
        self.handle = llama_h.llama_model_load_from_file(str(path).encode(), params)
        assert self.handle


@pytest.mark.parametrize("kind", ["code", "aligned", "slerp"])
def test_its_context_counts_as_many_bytes(random_model: Loaded, plan: Path, kind: str) -> None:
    if kind == "slerp":
        minicache = MiniCache(start=0, retain=0.05, window=16)
    else:
        make = {"code": coded, "aligned": aligned}[kind]
        make(random_model, Config(ALL_PAIRS[1:], retain=0.05, window=16), plan)
        minicache = MiniCache(plan=plan)
    with Context(random_model.model, minicache) as ctx:
        expected = ctx.report()
    model = EmptyModel(random_model.path)
    with Context(model, minicache) as ctx:
        assert ctx.report() == expected
    model.close()
    assert expected.bytes < expected.bytes_f16 or kind == "aligned"


def test_a_plan_is_compared_by_its_shape(
    load: Callable[..., Loaded], random_model: Loaded, plan: Path
) -> None:
    coded(random_model, Config(ALL_PAIRS), plan)
    other = EmptyModel(load(tiny_models.random_model, seed=1).path)
    Context(other, MiniCache(plan=plan)).close()  # the weights, which would tell, are not there
    other.close()
    for shape in ({"n_layer": 8}, {"head_size": 64}):
        model = EmptyModel(load(tiny_models.random_model, **shape).path)
        with pytest.raises(ContextRefused, match=r"another model|does not fit the heads"):
            Context(model, MiniCache(plan=plan))
        model.close()


def test_it_has_no_fingerprint(random_model: Loaded) -> None:
    model = EmptyModel(random_model.path)
    buffer = ffi.new("char[17]")
    pointer = ffi.cast("struct llama_model *", model.handle)
    with pytest.raises(MiniCacheError, match="without its weights"):
        binding.check(lib.llama_minicache_fingerprint(pointer, buffer), "llama_minicache_fingerprint")
    model.close()

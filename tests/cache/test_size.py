"""The bytes that are computed from a model's header are those that a context allocates."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp import CacheSpec, Llama, MiniCache
from minicache_cpp.cache.size import kv_bytes, merged_groups
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from support import tiny_models

SPECS = [
    "f16",
    "q8_0",
    "q4_0",
    "iq4_nl",
    "slerp",
    "slerp:type=q4_0",
    "slerp:type_k=q8_0,type_v=q5_1,pool=cache",
    "slerp:start=0,retain=0,type=bf16",
    "slerp:start=0,retain=1,pool=f16,type=q4_1",
    "slerp:start=5,retain=0.03,type=q5_0",
    "slerp:pairs=0-4;2-3,retain=0.4,pool=cache",
    "slerp:window=64",
    "slerp:start=0,retain=0,window=33,type_k=q4_0,type_v=q5_0,pool=cache",
    "average:start=0,retain=0.1,window=1,pool=f16",
    "slerp:window=1000,type=q8_0",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "grouped": tiny_models.random_model().write(folder / "grouped.gguf"),
        "odd layers": tiny_models.random_model(n_layer=7, n_head_kv=1).write(folder / "odd.gguf"),
        "wide heads": tiny_models.random_model(head_size=64, n_head_kv=4).write(folder / "wide.gguf"),
    }


@pytest.mark.parametrize("name", ["grouped", "odd layers", "wide heads"])
@pytest.mark.parametrize("spec", SPECS)
def test_the_bytes_are_those_of_a_real_context(models: dict[str, Path], name: str, spec: str) -> None:
    parsed = CacheSpec.parse(spec)
    shape = model_shape(read_gguf(models[name]))
    n_ctx = 700
    types = {} if parsed.minicache else {"type_k": parsed.type_k, "type_v": parsed.type_v, "flash_attn": True}
    with Llama(str(models[name]), n_ctx=n_ctx, verbose=False, minicache=parsed.minicache, **types) as llm:
        report = llm.kv_report()
    assert kv_bytes(shape, parsed, n_ctx) == report.bytes
    assert kv_bytes(shape, CacheSpec("f16", "f16"), n_ctx) == report.bytes_f16
    assert (merged_groups(shape, parsed.minicache) if parsed.minicache else []) == report.pairs


@pytest.mark.parametrize("start", [0.05, 0.1, 0.29, 0.3, 0.5, 0.58, 0.7, 0.9, 0.95])
def test_the_start_layer_is_the_native_one(models: dict[str, Path], start: float) -> None:
    settings = MiniCache(start=start)
    with Llama(str(models["odd layers"]), n_ctx=256, verbose=False, minicache=settings) as llm:
        assert merged_groups(model_shape(read_gguf(models["odd layers"])), settings) == llm.kv_report().pairs

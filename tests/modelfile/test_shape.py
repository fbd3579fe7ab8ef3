"""The shape of a model, as its keys give it."""

from __future__ import annotations

from pathlib import Path

from minicache_cpp import CacheSpec, MiniCache
from minicache_cpp.cache.size import kv_bytes, merged_groups
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from support.gguf_files import keys_only


def test_layers_may_differ_in_kv_heads(tmp_path: Path) -> None:
    path = keys_only(tmp_path / "differ.gguf", {"attention.head_count_kv": [2, 2, 0, 4, 4, 1]})
    shape = model_shape(read_gguf(path))
    assert [layer.n_head_kv for layer in shape.layers] == [2, 2, 0, 4, 4, 1]
    assert merged_groups(shape, MiniCache(start=0)) == [(0, 1)]  # (2, 3) and (4, 5) differ
    assert merged_groups(shape, MiniCache(start=1)) == [(3, 4)]
    assert kv_bytes(shape, CacheSpec("f16", "f16"), 256) == 256 * 13 * 2 * 32 * 2
    assert inspect_model(str(path), 256)["kv_heads"] == [2, 2, 0, 4, 4, 1]

"""The shape of a model, as its keys give it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from minicache_cpp import CacheSpec, MiniCache, MiniCacheError
from minicache_cpp.cache.size import kv_bytes, merged_groups
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile.fingerprint import fingerprint
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


@pytest.mark.parametrize(
    "keys",
    [
        {"block_count": 2**31},
        {"block_count": 65537},
        {"nextn_predict_layers": 7},
        {"attention.head_count_kv": [2, 2, -1, 2, 2, 2]},
    ],
    ids=str,
)
def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, keys: dict[str, int | list[int]]) -> None:
    """A count that is believed would be looped over, or take all memory."""
    file = read_gguf(keys_only(tmp_path / "odd.gguf", keys))
    with pytest.raises(MiniCacheError, match="is damaged"):
        assert fingerprint(file) and model_shape(file)


def test_the_size_of_many_layers_is_found_at_once(tmp_path: Path) -> None:
    shape = model_shape(read_gguf(keys_only(tmp_path / "deep.gguf", {"block_count": 20_000})))
    started = time.perf_counter()
    assert kv_bytes(shape, CacheSpec.parse("slerp:start=0"), 1) > 0
    assert time.perf_counter() - started < 20

"""`minicache inspect`: its bytes are what a context really allocates; its reader takes whole files only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from minicache_cpp import CacheSpec, Llama, MiniCache, MiniCacheError
from minicache_cpp.cache.size import kv_bytes, merged_groups
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.modelfile.shape import model_shape
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


def test_a_sliding_window_model_is_not_merged(tmp_path: Path) -> None:
    model = tiny_models.sliding_window_model(tmp_path / "window.gguf")
    found = inspect_model(str(model), 700, ["f16", "slerp"])
    assert [row["ratio"] for row in found["rows"]] == [1.0, 1.0]
    assert "sliding window" in found["notes"][0]
    with Llama(str(model), n_ctx=700, verbose=False, minicache=MiniCache()) as llm:
        assert llm.kv_report().bytes == found["rows"][1]["bytes"]


@pytest.mark.parametrize("start", [0.05, 0.1, 0.29, 0.3, 0.5, 0.58, 0.7, 0.9, 0.95])
def test_the_start_layer_is_the_native_one(models: dict[str, Path], start: float) -> None:
    settings = MiniCache(start=start)
    with Llama(str(models["odd layers"]), n_ctx=256, verbose=False, minicache=settings) as llm:
        assert merged_groups(model_shape(read_gguf(models["odd layers"])), settings) == llm.kv_report().pairs


def test_the_command_prints_a_table_and_json(models: dict[str, Path]) -> None:
    for command in (["-m", "minicache_cpp", "inspect"], ["-m", "minicache_cpp.inspect"]):
        done = run(*command, str(models["grouped"]), "--ctx", "2048")
        assert done.returncode == 0, done.stderr
        assert "6 layers, 4 heads, 2 KV heads, head size 32, trained for 4096 tokens" in done.stdout
        assert "slerp:start=0.5,t=0.6,retain=0.05,type=q4_0" in done.stdout
    found = json.loads(run("-m", "minicache_cpp", "inspect", str(models["grouped"]), "--json").stdout)
    assert (found["architecture"], found["layers"]) == ("llama", 6)
    assert (found["kv_heads"], found["context"]) == (2, 4096)
    ratios = {row["name"]: row["ratio"] for row in found["rows"]}
    assert ratios["q8_0"] == pytest.approx(32 / 17)
    assert ratios["q4_0"] == pytest.approx(32 / 9)


def test_weights_are_not_read(models: dict[str, Path], tmp_path: Path) -> None:
    # a file whose tensors lie in a hole of a terabyte could not be read at all
    writer = gguf.GGUFWriter(tmp_path / "huge.gguf", "llama")
    for key, value in (("block_count", 4), ("embedding_length", 128), ("attention.head_count", 2)):
        writer.add_uint32(f"llama.{key}", value)
    writer.add_tensor_info("token_embd.weight", (1 << 19, 1 << 19), np.dtype(np.float32), 1 << 40)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    path = tmp_path / "huge.gguf"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + (1 << 40) + 4096)
    assert read_gguf(path).weight_bytes == 1 << 40


def test_layers_may_differ_in_kv_heads(tmp_path: Path) -> None:
    path = keys_only(tmp_path / "differ.gguf", {"attention.head_count_kv": [2, 2, 0, 4, 4, 1]})
    shape = model_shape(read_gguf(path))
    assert [layer.n_head_kv for layer in shape.layers] == [2, 2, 0, 4, 4, 1]
    assert merged_groups(shape, MiniCache(start=0)) == [(0, 1)]  # (2, 3) and (4, 5) differ
    assert merged_groups(shape, MiniCache(start=1)) == [(3, 4)]
    assert kv_bytes(shape, CacheSpec("f16", "f16"), 256) == 256 * 13 * 2 * 32 * 2
    assert inspect_model(str(path), 256)["kv_heads"] == [2, 2, 0, 4, 4, 1]


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"attention.kv_lora_rank": 64}, "latent"), ({"ssm.state_size": 16}, "recurrent")],
)
def test_what_is_no_plain_cache_is_said_so(tmp_path: Path, keys: dict[str, int], words: str) -> None:
    found = inspect_model(str(keys_only(tmp_path / "other.gguf", keys)), 256)
    assert words in found["notes"][0]
    assert not found["rows"]


def test_heads_that_a_type_cant_hold_are_told(tmp_path: Path) -> None:
    path = keys_only(tmp_path / "heads.gguf", {"attention.key_length": 40, "attention.value_length": 40})
    found = inspect_model(str(path), 256, ["f16", "q4_0"])
    assert [row["name"] for row in found["rows"]] == ["f16"]
    assert "multiple of 32" in found["notes"][0]


def test_a_split_model_counts_all_its_parts(tmp_path: Path) -> None:
    keys = {"split.count": 2, "split.no": 0}
    first = keys_only(tmp_path / "big-00001-of-00002.gguf", {}, keys, n_weights=100)
    with pytest.raises(MiniCacheError, match=r"00002-of-00002\.gguf does not exist"):
        read_gguf(first)
    second = keys_only(tmp_path / "big-00002-of-00002.gguf", {}, {**keys, "split.no": 1}, n_weights=50)
    assert read_gguf(first).weight_bytes == 600
    with pytest.raises(MiniCacheError, match="first part"):
        read_gguf(second)


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(models: dict[str, Path], tmp_path: Path, part: float) -> None:
    data = models["grouped"].read_bytes()
    path = tmp_path / "short.gguf"
    path.write_bytes(data[: int(len(data) * part)] or b"GGUF")
    done = run("-m", "minicache_cpp", "inspect", str(path)) if part == 0.5 else None
    if done:
        assert (done.returncode, done.stdout) == (2, "")
        assert "truncated" in done.stderr
        assert done.stderr.count("\n") == 1
    with pytest.raises(MiniCacheError, match="truncated"):
        read_gguf(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, words in (
        (tmp_path, "directory"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "text", "not a GGUF file"),
    ):
        with pytest.raises(MiniCacheError, match=words):
            read_gguf(path)


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


def keys_only(
    path: Path, keys: dict[str, int | list[int]], general: dict[str, int] | None = None, n_weights: int = 0
) -> Path:
    """A GGUF file of six layers with a head size of 32, with these keys and hardly any tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    base = {"block_count": 6, "embedding_length": 128, "attention.head_count": 4, "context_length": 512}
    for key, value in {**base, **keys}.items():
        if isinstance(value, list):
            writer.add_array(f"llama.{key}", value)
        else:
            writer.add_uint32(f"llama.{key}", value)
    for key, value in (general or {}).items():
        writer.add_uint16(key, value)
    if n_weights:
        writer.add_tensor("token_embd.weight", np.zeros(n_weights, np.float32))
    tiny_models.finish(writer)
    return path

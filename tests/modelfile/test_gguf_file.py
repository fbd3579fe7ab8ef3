"""The reader of GGUF headers accepts only complete files and does not read weights."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.modelfile.gguf_file import read_gguf
from support.gguf_files import keys_only


def test_weights_are_not_read(tmp_path: Path) -> None:
    # a file with a hole of a terabyte for its tensors could not be read in full
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


def test_a_split_model_counts_all_its_parts(tmp_path: Path) -> None:
    keys = {"split.count": 2, "split.no": 0}
    first = keys_only(tmp_path / "big-00001-of-00002.gguf", {}, keys, n_weights=100)
    with pytest.raises(MiniCacheError, match=r"00002-of-00002\.gguf does not exist"):
        read_gguf(first)
    second = keys_only(tmp_path / "big-00002-of-00002.gguf", {}, {**keys, "split.no": 1}, n_weights=50)
    assert read_gguf(first).weight_bytes == 600
    with pytest.raises(MiniCacheError, match="first part"):
        read_gguf(second)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, words in (
        (tmp_path, "directory"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "text", "not a GGUF file"),
    ):
        with pytest.raises(MiniCacheError, match=words):
            read_gguf(path)

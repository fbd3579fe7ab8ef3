"""The fingerprint of a model is the one that the native library computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native import binding
from support import contexts


@pytest.mark.parametrize("name", ["neighbours", "other", "halves", "alibi", "odd"])
def test_the_fingerprint_is_the_librarys(model_kinds: dict[str, Path], name: str) -> None:
    model = contexts.Model(model_kinds[name])
    own = fingerprint(read_gguf(model_kinds[name]))
    assert own == binding.fingerprint(model.handle)
    assert all(own != fingerprint(read_gguf(path)) for other, path in model_kinds.items() if other != name)


def test_the_fingerprint_of_a_real_model_is_the_librarys(smollm2: Path) -> None:
    model = contexts.Model(smollm2)
    assert fingerprint(read_gguf(smollm2)) == binding.fingerprint(model.handle)

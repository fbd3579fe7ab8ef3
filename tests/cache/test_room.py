"""Whether memory has room for contexts, from a model's header alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp import CacheSpec, MiniCacheError
from minicache_cpp.cache import room
from minicache_cpp.cache.room import CELL_BYTES, known_kv_bytes, refuse_too_large
from minicache_cpp.host import memory
from minicache_cpp.modelfile.gguf_file import GGUFFile

F16, Q8_0 = CacheSpec("f16", "f16"), CacheSpec("q8_0", "q8_0")
N_CTX = 512
WEIGHTS = 1_000_000


def header(**more: object) -> GGUFFile:
    keys = {
        "block_count": 4,
        "embedding_length": 256,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "context_length": 4096,
        **more,
    }
    named = {"general.architecture": "llama", **{f"llama.{key}": value for key, value in keys.items()}}
    return GGUFFile(Path("model.gguf"), named, 0, WEIGHTS)


def refused(monkeypatch: pytest.MonkeyPatch, available: int, specs: list[CacheSpec], gpu_layers: int) -> bool:
    monkeypatch.setattr(memory, "available_bytes", lambda: available)
    try:
        refuse_too_large(header(), N_CTX, specs, gpu_layers)
    except MiniCacheError:
        return True
    return False


@pytest.mark.parametrize("specs", [[F16], [Q8_0], [F16, Q8_0]])
def test_caches_cells_and_weights_count(monkeypatch: pytest.MonkeyPatch, specs: list[CacheSpec]) -> None:
    needed = WEIGHTS + sum(known_kv_bytes(header(), spec, N_CTX) + N_CTX * CELL_BYTES for spec in specs)
    assert not refused(monkeypatch, needed, specs, 0)
    assert refused(monkeypatch, needed - 1, specs, 0)


def test_on_a_gpu_the_cells_count(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = WEIGHTS + known_kv_bytes(header(), F16, N_CTX) + N_CTX * CELL_BYTES
    assert refused(monkeypatch, needed - 1, [F16], -1)  # there is none
    monkeypatch.setattr(room.devices, "gpus", lambda: ["one"])
    assert not refused(monkeypatch, 2 * N_CTX * CELL_BYTES, [F16, Q8_0], -1)
    assert refused(monkeypatch, 2 * N_CTX * CELL_BYTES - 1, [F16, Q8_0], -1)


def test_what_the_header_does_not_say_is_not_refused() -> None:
    assert known_kv_bytes(header(), F16, N_CTX) == 4 * 2 * 2 * 32 * 2 * N_CTX
    assert known_kv_bytes(header(**{"attention.kv_lora_rank": 16}), F16, N_CTX) == 0


def test_the_sequences_of_a_context_count(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * (known_kv_bytes(header(), Q8_0, N_CTX) + N_CTX * CELL_BYTES) + WEIGHTS
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    refuse_too_large(header(), N_CTX, [Q8_0], n_stream=3)
    with pytest.raises(MiniCacheError, match="4 contexts of 512 tokens need"):
        refuse_too_large(header(), N_CTX, [Q8_0], n_stream=4)
    # of which a cache that is not known yet takes a part
    refuse_too_large(header(), N_CTX, [Q8_0], n_stream=4, share=0.1)

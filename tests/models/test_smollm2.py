"""The demo model itself: the table's row is true of it, and it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.models import store, table
from minicache_cpp.models.download import sha256_of
from minicache_cpp.native.model_shape import model_shape


def test_the_row_is_true(smollm2: Path) -> None:
    row = table.model_named(store.DEMO)
    assert smollm2.stat().st_size == row.bytes
    assert sha256_of(smollm2) == row.sha256
    file = read_gguf(smollm2)
    assert model_shape(file).n_ctx_train == row.context
    assert file.keys["general.license"] == row.licence.lower()
    assert "tokenizer.chat_template" in file.keys


@pytest.mark.usefixtures("cache")
def test_chat_without_a_model_answers_in_sentences(smollm2: Path) -> None:
    store.models_folder().mkdir(parents=True)
    store.model_path(table.model_named(store.DEMO)).symlink_to(smollm2)
    arguments = ["--prompt", "Tell me about the moon.", "--temp", "0", "--max-tokens", "24", "--ctx", "256"]
    command = [sys.executable, "-m", "minicache_cpp.chat", *arguments, "--config", "q8_0", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=True)
    assert "moon" in done.stdout.lower() and len(done.stdout.split()) > 10


@pytest.mark.usefixtures("cache")
def test_its_plan_ships(smollm2: Path) -> None:
    """The first chat waits for no calibration, and its answer still makes sense."""
    arguments = ["--prompt", "Tell me about the moon.", "--temp", "0", "--max-tokens", "24", "--ctx", "512"]
    command = [
        sys.executable,
        "-m",
        "minicache_cpp.chat",
        str(smollm2),
        *arguments,
        "--json",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=True)
    found = json.loads(done.stdout)
    assert found["ratio"] >= 4.99
    assert found["warnings"] == []
    assert "moon" in found["answer"].lower() and len(found["answer"].split()) > 10

"""Invariant I2: switched off, the library is upstream bit for bit. The environment can switch it on in any program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from support import tiny_models
from support.family_models import FAMILIES
from support.loaded import Loaded
from support.paths import ROOT

SCRIPT = ROOT / "tests" / "support" / "decode_logits.py"
N_PROMPT, N_DECODE = 150, 64

Logits = npt.NDArray[np.float32]


def decode(library: Path, model: Path, out: Path, kind: str, env: str | None = None) -> tuple[int, str]:
    """Runs `decode_logits.py` with the given library, and returns its exit status and output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    environment["LLAMA_CPP_LIB_PATH"] = str(library)
    if env is not None:
        environment["LLAMA_MINICACHE"] = env
    command = [sys.executable, str(SCRIPT), str(model), str(out), str(N_PROMPT), str(N_DECODE), kind]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="session")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Logits]:
    """logits(library, model, kind, env) returns all logits of one run, and makes each run once."""
    out = tmp_path_factory.mktemp("logits") / "logits.npy"
    done: dict[tuple[object, ...], Logits] = {}

    def get(library: Path, model: Path, kind: str, env: str | None = None) -> Logits:
        key = (library, model, kind, env)
        if key not in done:
            status, output = decode(library, model, out, kind, env)
            assert status == 0, output
            done[key] = np.load(out)
            assert np.isfinite(done[key]).all()
            assert len(done[key]) == N_PROMPT + N_DECODE
        return done[key]

    return get


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_off_is_the_stock_build_bit_for_bit(
    kind: str, logits: Callable[..., Logits], stock_dir: Path, library_dir: Path, load: Callable[..., Loaded]
) -> None:
    assert stock_dir != library_dir
    model = load(tiny_models.random_model, head_size=64).path
    assert np.array_equal(logits(stock_dir, model, kind), logits(library_dir, model, kind))


@pytest.mark.parametrize("kind", ["f16", "q4_0"])
def test_off_is_the_stock_build_on_a_real_model(
    kind: str, logits: Callable[..., Logits], stock_dir: Path, library_dir: Path, smollm2: Path
) -> None:
    assert np.array_equal(logits(stock_dir, smollm2, kind), logits(library_dir, smollm2, kind))


@pytest.mark.parametrize("name", ["gemma3", "gemma4-shared", "gpt-oss", "qwen35", "falcon-h1", "qwen3vl"])
def test_off_is_the_stock_build_on_mixed_models(
    name: str, logits: Callable[..., Logits], stock_dir: Path, library_dir: Path, tmp_path: Path
) -> None:
    model = FAMILIES[name].write(tmp_path / "model.gguf")
    assert np.array_equal(logits(stock_dir, model, "q8_0"), logits(library_dir, model, "q8_0"))


@pytest.mark.parametrize("off", ["", "0", "off"])
def test_the_environment_can_switch_it_off(
    off: str, logits: Callable[..., Logits], library_dir: Path, random_model: Loaded
) -> None:
    assert np.array_equal(
        logits(library_dir, random_model.path, "f16", off), logits(library_dir, random_model.path, "f16")
    )


def test_the_environment_switches_it_on(
    logits: Callable[..., Logits], library_dir: Path, random_model: Loaded
) -> None:
    plain = logits(library_dir, random_model.path, "f16")
    merged = logits(library_dir, random_model.path, "f16", "slerp:start=0.5,t=0.6,retain=0.05")
    assert not np.array_equal(plain, merged)
    # the first ubatch sees only current tokens, which are exact; the next ones see merged tokens
    np.testing.assert_allclose(merged[:48], plain[:48], atol=0.05)
    assert np.abs(merged[48:] - plain[48:]).max() > 0.5
    assert np.array_equal(
        merged, logits(library_dir, random_model.path, "f16", "slerp")
    )  # the paper's settings
    other = logits(library_dir, random_model.path, "f16", "slerp:pairs=1-2;4-5,t=0.3,retain=0")
    assert not np.array_equal(merged, other)


@pytest.mark.parametrize(
    "text",
    ["t=1.5", "t=nan", "start=2.0", "retain=-0.1", "pairs=1-2;2-3", "colour=red", "t", "start=0.5", "on"],
)
def test_nonsense_in_the_environment_makes_no_context(
    text: str, library_dir: Path, random_model: Loaded, tmp_path: Path
) -> None:
    status, output = decode(library_dir, random_model.path, tmp_path / "none.npy", "f16", text)
    assert status == 1, output
    assert "no context" in output
    assert "LLAMA_MINICACHE" in output  # the log says where the wrong settings come from

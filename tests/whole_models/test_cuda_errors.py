"""Errors of devices are exceptions, and other contexts go on."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError
from support.cuda_on_cpu import Devices, devices
from support.loaded import Loaded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fibers need Linux")
SETTINGS = {"n_ctx": 256, "n_batch": 32, "verbose": False, "n_gpu_layers": -1, "minicache": MiniCache()}
TOKENS = list(range(3, 43))


def test_an_error_is_an_exception(random_model: Loaded, device: Devices) -> None:
    path = str(random_model.path)
    with Llama(path, **SETTINGS) as other, Llama(path, **SETTINGS) as llm:
        other.eval(TOKENS[:16])
        llm.eval(TOKENS[:16])
        device.fail(2)
        with pytest.raises(
            MiniCacheError, match=r"illegal memory access .*; the context cannot be used any more"
        ):
            llm.eval(TOKENS[16:24])
        with pytest.raises(MiniCacheError, match="failed earlier"):
            llm.eval(TOKENS[16:24])
        other.eval(TOKENS[16:24])
        seen = np.array(other._ctx.get_logits()[: other.n_vocab()])
    with Llama(path, **SETTINGS) as again:
        again.eval(TOKENS[:16])
        again.eval(TOKENS[16:24])
        assert np.array_equal(again._ctx.get_logits()[: again.n_vocab()], seen)


@pytest.mark.parametrize("call", ["save", "load", "clear"])
def test_errors_of_copies_are_exceptions_too(random_model: Loaded, device: Devices, call: str) -> None:
    with Llama(str(random_model.path), **SETTINGS) as llm:
        llm.eval(TOKENS[:16])
        state = llm.save_state()
        calls = {
            "save": llm.save_state,
            "load": lambda: llm.load_state(state),
            "clear": llm._ctx.kv_cache_clear,
        }
        device.fail_copy(0)
        with pytest.raises(
            MiniCacheError, match=r"illegal memory access .*; the context cannot be used any more"
        ):
            calls[call]()
        for one in (*calls.values(), lambda: llm.eval(TOKENS[16:24])):
            with pytest.raises(MiniCacheError, match="failed earlier"):
                one()


def test_a_device_that_is_lost(random_model: Loaded, device: Devices) -> None:
    """In a process of its own, every call says that the program must be restarted, and the process ends in order."""
    script = f"""
import ctypes
from minicache_cpp import Llama, MiniCache, MiniCacheError
library = ctypes.CDLL({str(device.path)!r})
settings = {{"n_gpu_layers": -1, "minicache": MiniCache(), "n_ctx": 256, "verbose": False}}
llm, other = (Llama({str(random_model.path)!r}, **settings) for _ in range(2))
other.eval(list(range(3, 20)))
library.cuda_on_cpu_fail(0, True)
for one in (llm, other):
    try:
        one.eval(list(range(3, 20)))
    except MiniCacheError as error:
        print(error)
for one in (llm, other):
    one.close()
print("closed")
"""
    environment = os.environ | {
        "GGML_BACKEND_PATH": str(device.path),
        "MINICACHE_LIB_PATH": str(device.libraries),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *errors, closed = done.stdout.splitlines()
    assert closed == "closed"
    for line in errors:
        assert "illegal memory access" in line
        assert line.endswith(
            "its device no longer answers: nothing can be computed or freed there until the program is started again"
        )
    assert len(errors) == 2


def test_too_little_memory_is_reported(random_model: Loaded) -> None:
    path = str(random_model.path)
    with devices(memory=4 << 20):
        settings = {**SETTINGS, "n_ctx": 65536}
        with pytest.raises(
            MiniCacheError, match=r"MiB.*on cuda-on-cpu0, of whose 4\.00 MiB [0-9.]+ are free"
        ):
            Llama(path, **settings)
        with Llama(path, **SETTINGS) as llm:
            llm.eval(TOKENS[:16])

"""What is said where there is no GPU, and options for devices that contradict each other."""

from __future__ import annotations

from pathlib import Path

import pytest

import compare_devices
from minicache_cpp import MiniCacheError
from minicache_cpp.cli import main
from minicache_cpp.native import devices


def test_a_missing_gpu_is_reported(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    if devices.gpus():
        pytest.skip("there is a GPU")
    with pytest.raises(MiniCacheError, match="no GPU that these libraries can use"):
        devices.require_gpu()
    assert main(["bench", str(model), "--device", "cuda"]) == 2
    assert "GGML_CUDA=on" in capsys.readouterr().err
    with pytest.raises(MiniCacheError, match="no GPU"):
        compare_devices.main([str(model)])


def test_device_and_layers_contradict(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert main(["bench", str(model), "--device", "cpu", "--gpu-layers", "3"]) == 2
    assert "--gpu-layers" in capsys.readouterr().err

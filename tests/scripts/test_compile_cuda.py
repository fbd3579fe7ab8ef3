"""scripts/compile_cuda.py on a machine without nvcc."""

from __future__ import annotations

import pytest

import compile_cuda


def test_cuda_sources_are_skipped_aloud(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_cuda, "find_nvcc", lambda: None)
    assert compile_cuda.main([]) == 0
    assert "skipped, there is no nvcc" in capsys.readouterr().out

"""Where the demo models are looked for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.host import demo_model


def test_the_demo_model_is_found_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, prefix, here = (tmp_path / name for name in ("lib/site/package", "checkout/.venv", "elsewhere"))
    for folder in (package, prefix, here):
        folder.mkdir(parents=True)
    monkeypatch.setattr(demo_model, "__file__", str(package / "host" / "demo_model.py"))
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.chdir(here)
    with pytest.raises(MiniCacheError, match="name a GGUF file"):
        demo_model.demo_model()
    for root in (here, tmp_path / "checkout", package):
        (root / "models").mkdir()
        (root / "models" / demo_model.NAME).write_bytes(b"GGUF")
        assert demo_model.demo_model() == root / "models" / demo_model.NAME
        with pytest.raises(MiniCacheError, match=r"other\.gguf"):
            demo_model.demo_model("other.gguf")

"""`minicache="auto"`: a plan is made once and found afterwards. Without a plan the cache is plain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError, MiniCacheWarning
from minicache_cpp.cache.plan_file import read_plan, write_plan
from minicache_cpp.cache.plan_store import find_plan, plan_path
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.text import bundled
from support import tiny_models
from support.calibrations import made, read_codec, write_sentences
from support.loaded import Loaded


@pytest.fixture(scope="module")
def four_layers(load: Callable[..., Loaded]) -> Path:
    return load(tiny_models.random_model, n_layer=4).path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentences(tmp_path_factory.mktemp("text") / "text.txt")


def test_auto_calibrates_once(
    four_layers: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bundled, "calibration_files", lambda: [text])
    arguments: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}
    with pytest.warns(MiniCacheWarning, match="plain q8_0.*minicache calibrate"):
        llm = Llama(str(four_layers), calibrate="never", **arguments)
    assert llm.kv_report().type_k == "q8_0"
    assert llm.kv_report().ratio == pytest.approx(16 / 8.5)
    llm.close()
    assert find_plan(read_gguf(four_layers)) is None
    with pytest.warns(MiniCacheWarning, match="calibrated now, once"):
        llm = Llama(str(four_layers), calibrate="once", **arguments)
    assert llm.kv_report().ratio >= 4.99
    assert llm.minicache == MiniCache(plan=plan_path(read_gguf(four_layers)))
    llm.close()
    # now there is a plan, and no warning
    monkeypatch.setattr("minicache_cpp.calibrate.calibration.calibrate", None)
    for choice in ("once", "never", None):
        with Llama(str(four_layers), calibrate=choice, **arguments) as llm:
            assert llm.kv_report().mode == "code"


def test_auto_replaces_a_plan_of_an_older_version(
    four_layers: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bundled, "calibration_files", lambda: [text])
    path = plan_path(read_gguf(four_layers))
    made(four_layers, text, tmp_path / "plan.gguf")
    plan = read_plan(tmp_path / "plan.gguf")
    codecs = {group.first: read_codec(tmp_path / "plan.gguf", group.first) for group in plan.groups}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicache_cpp.cache.plan_file.VERSION", 2)
        write_plan(path, plan, codecs)
    with pytest.raises(MiniCacheError, match="another version"):
        read_plan(path)
    arguments: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}
    with (
        pytest.warns(MiniCacheWarning, match="calibrated now, once"),
        Llama(str(four_layers), calibrate="once", **arguments) as llm,
    ):
        assert llm.kv_report().mode == "code"
    assert [group.layers for group in read_plan(path).groups] == [group.layers for group in plan.groups]


def test_auto_does_without_where_calibration_fails(
    four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bundled, "calibration_files", lambda: [tmp_path / "none.txt"])
    arguments: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}
    with pytest.warns(MiniCacheWarning, match="can't be calibrated.*none.txt"):
        llm = Llama(str(four_layers), calibrate="once", **arguments)
    assert llm.kv_report().type_k == "q8_0"
    llm.close()

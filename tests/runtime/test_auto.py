"""`minicache="auto"`: a plan is made once and found afterwards. Without a plan the cache is plain."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import Llama, MiniCache, MiniCacheError, MiniCacheWarning
from minicache_cpp.cache.plan_file import PlanFile, write_plan
from minicache_cpp.cache.plan_store import find_plan, plan_path
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.text import bundled
from support import tiny_models
from support.calibrations import made, read_codec, write_sentences
from support.loaded import Loaded


@pytest.fixture(scope="module")
def four_layers(load: Callable[..., Loaded]) -> Path:
    return load(tiny_models.random_model, n_layer=4).path


@pytest.fixture(autouse=True)
def no_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache directory of the test's own: other tests of this process may have made a plan for the same model."""
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))


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
    with pytest.warns(MiniCacheWarning, match="one is made now"):
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
    plan = PlanFile.open(tmp_path / "plan.gguf").plan
    codecs = {group.first: read_codec(tmp_path / "plan.gguf", group.first) for group in plan.groups}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicache_cpp.cache.plan_file.VERSION", 3)
        write_plan(path, plan, codecs)
    with pytest.raises(MiniCacheError, match="another version"):
        PlanFile.open(path)
    arguments: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}
    with (
        pytest.warns(MiniCacheWarning, match="one is made now"),
        Llama(str(four_layers), calibrate="once", **arguments) as llm,
    ):
        assert llm.kv_report().mode == "code"
    assert [group.layers for group in PlanFile.open(path).plan.groups] == [
        group.layers for group in plan.groups
    ]


def test_auto_does_without_where_calibration_fails(
    four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bundled, "calibration_files", lambda: [tmp_path / "none.txt"])
    arguments: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}
    with pytest.warns(MiniCacheWarning, match="cannot be calibrated.*none.txt"):
        llm = Llama(str(four_layers), calibrate="once", **arguments)
    assert llm.kv_report().type_k == "q8_0"
    llm.close()


def test_auto_keeps_the_types_that_the_caller_gave(random_model: Loaded) -> None:
    """Where a plain cache is the best there is; type number 0 is f32, and not "none given"."""
    arguments: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "verbose": False, "calibrate": "never"}
    for given, types in (
        ({"type_k": 0}, ("f32", "q8_0")),
        ({"type_v": "f16"}, ("q8_0", "f16")),
        ({}, ("q8_0", "q8_0")),
    ):
        with pytest.warns(MiniCacheWarning, match="has no plan"):
            llm = Llama(str(random_model.path), minicache="auto", **given, **arguments)  # type: ignore[arg-type]
        report = llm.kv_report()
        llm.close()
        assert (report.type_k, report.type_v) == types


def test_the_warning_is_at_the_callers_line(random_model: Loaded) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Llama(str(random_model.path), n_ctx=256, verbose=False, minicache="auto", calibrate="never").close()
    ours = [one for one in caught if issubclass(one.category, MiniCacheWarning)]
    assert [one.filename for one in ours] == [__file__]


def test_what_is_refused_is_refused_before_a_calibration(
    random_model: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minicache_cpp.calibrate.calibration.calibrate", None)
    with pytest.raises(MiniCacheError, match="flash attention"):
        Llama(str(random_model.path), minicache="auto", calibrate="once", flash_attn=False, verbose=False)

"""The same input gives the same plan, and an interrupted calibration continues where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import CacheSpec
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.calibrate import capture as capture_module
from minicache_cpp.calibrate.meter import Meter
from minicache_cpp.host.progress import Progress
from support.calibrations import made


@pytest.fixture(scope="module")
def refined(models: dict[str, Path], text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return made(
        models["plain"], text, tmp_path_factory.mktemp("plans") / "plan.gguf", thorough=True, refine=1
    )


def test_refining_is_kept_where_it_is_better(
    models: dict[str, Path], text: Path, tmp_path: Path, refined: dict[str, Any]
) -> None:
    thorough = made(models["plain"], text, tmp_path / "plan.gguf", thorough=True)
    assert refined["kl_measured"] <= thorough["kl_measured"]
    assert refined["rows"][0]["ratio"] >= 5.0


def test_the_same_input_gives_the_same_bytes(
    models: dict[str, Path], text: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    again = made(models["plain"], text, tmp_path / "again.gguf")
    assert Path(again["plan"]).read_bytes() == Path(found["plan"]).read_bytes()


def test_an_interrupted_calibration_is_continued(
    models: dict[str, Path],
    text: Path,
    tmp_path: Path,
    refined: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    n_run = 0
    read = Meter._read

    def interrupted(self: Meter, spec: CacheSpec, kind: str, name: str) -> Any:
        nonlocal n_run
        n_run += 1
        if n_run == 9:
            raise KeyboardInterrupt
        return read(self, spec, kind, name)

    told: list[str] = []
    monkeypatch.setattr(Progress, "__call__", lambda self, fraction, stage, detail="": told.append(detail))
    monkeypatch.setattr(Meter, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(models["plain"], text, tmp_path / "plan.gguf", thorough=True, refine=1)
    assert not (tmp_path / "plan.gguf").exists()
    done = [detail for detail in told if detail.startswith(("all layers", "K of", "V of"))]
    assert len(done) >= 3
    told.clear()
    monkeypatch.setattr(capture_module.Observed, "read", None)  # fails if anything is captured again
    again = made(models["plain"], text, tmp_path / "plan.gguf", thorough=True, refine=1)
    assert not set(told) & set(done[:-1])  # only the interrupted measurement is repeated
    assert Path(again["plan"]).read_bytes() == Path(refined["plan"]).read_bytes()
    assert list((tmp_path / "cache" / "calibrations").iterdir()) == []  # intermediate results are removed


def test_probed_texts_are_fitted_to_and_kept_for_the_next_run(
    models: dict[str, Path],
    text: Path,
    tmp_path: Path,
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    n_fitted = int(PlanFile.open(found["plan"]).plan.text.split()[-2])
    assert found["tokens"]["fit"] < n_fitted <= found["tokens"]["fit"] + found["tokens"]["measure"]

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Meter, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(models["plain"], text, tmp_path / "plan.gguf")
    monkeypatch.undo()
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(capture_module.Observed, "read", None)  # fails if anything is captured again
    again = made(models["plain"], text, tmp_path / "plan.gguf")
    assert Path(again["plan"]).read_bytes() == Path(found["plan"]).read_bytes()


def test_what_a_thorough_calibration_measures_on_is_not_fitted_to(refined: dict[str, Any]) -> None:
    assert PlanFile.open(refined["plan"]).plan.text.endswith(f", {refined['tokens']['fit']} tokens")

"""A calibration beside the program: it waits for the model to be idle, can be ended, and is made by one process."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicache_cpp import CacheSpec, Llama, MiniCacheError, MiniCacheWarning
from minicache_cpp.cache.plan_store import find_plan, plan_path
from minicache_cpp.calibrate import capture as capture_module
from minicache_cpp.errors import CancelledError
from minicache_cpp.host.progress import Progress
from minicache_cpp.host.work_folder import locked
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.runtime import background, plan_maker
from minicache_cpp.runtime.usage import Usage
from minicache_cpp.text import bundled
from support import tiny_models
from support.calibrations import made, write_sentences
from support.loaded import Loaded

ARGUMENTS: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "verbose": False, "minicache": "auto"}


@pytest.fixture(scope="module")
def four_layers(load: Callable[..., Loaded]) -> Path:
    return load(tiny_models.random_model, n_layer=4).path


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = write_sentences(tmp_path / "text.txt")
    monkeypatch.setattr(bundled, "calibration_files", lambda: [text])
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(background, "IDLE", 0.05)
    monkeypatch.setattr(background, "LOOK", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def llm(four_layers: Path) -> Iterator[Llama]:
    with pytest.warns(MiniCacheWarning, match="plain q8_0 this time.*while the model is idle"):
        llm = Llama(str(four_layers), calibrate="background", **ARGUMENTS)
    with llm:
        yield llm


def test_the_next_start_finds_the_plan(llm: Llama, four_layers: Path) -> None:
    assert llm.kv_report().type_k == "q8_0"
    assert llm.calibration is not None
    for _ in range(20):  # meanwhile the model answers as it would alone
        llm.reset()
        llm.eval(tiny_models.prompt(30))
    logits = np.ctypeslib.as_array(llm._ctx.get_logits(), (llm.n_vocab(),)).copy()
    assert llm.calibration.wait(120)
    assert llm.calibration.error is None
    assert llm.calibration.plan is not None
    assert llm.calibration.plan.path == plan_path(read_gguf(four_layers))
    with Llama(str(four_layers), **{**ARGUMENTS, "minicache": CacheSpec("q8_0", "q8_0")}) as alone:
        alone.eval(tiny_models.prompt(30))
        np.testing.assert_array_equal(
            logits, np.ctypeslib.as_array(alone._ctx.get_logits(), (alone.n_vocab(),))
        )
    for choice in ("background", "never"):
        with Llama(str(four_layers), calibrate=choice, **ARGUMENTS) as again:
            assert again.kv_report().mode == "code"
            assert again.calibration is None


def test_it_waits_as_long_as_the_model_is_in_use(llm: Llama) -> None:
    calibration = llm.calibration
    assert calibration is not None
    with llm._ctx.usage:  # type: ignore[attr-defined]
        before = -1.0
        while calibration.fraction != before:  # a step that was begun ends, later on a busy machine
            before = calibration.fraction
            time.sleep(1)
        time.sleep(0.5)
        assert calibration.fraction == before
        assert not calibration.done
    assert calibration.wait(120)
    assert calibration.fraction > before


def test_closing_ends_it_and_the_next_goes_on_from_there(
    llm: Llama, four_layers: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = llm.calibration
    assert calibration is not None
    while calibration.fraction < 0.7 and not calibration.done:
        time.sleep(0.005)
    llm.close()
    assert calibration.done
    assert isinstance(calibration.error, CancelledError)
    assert find_plan(read_gguf(four_layers)) is None
    assert list(cache_dir.glob("calibrations/*/chunk-*"))
    monkeypatch.setattr(capture_module, "read_chunk", None)  # fails if anything is captured again
    with (
        pytest.warns(MiniCacheWarning, match="one is made now"),
        Llama(str(four_layers), calibrate="once", **ARGUMENTS) as again,
    ):
        assert again.kv_report().mode == "code"
    assert list(cache_dir.glob("calibrations/*")) == []


def test_a_callback_sees_it_all_and_may_end_it(four_layers: Path) -> None:
    seen: list[tuple[float, str]] = []

    def on_progress(fraction: float, stage: str, detail: str) -> bool:
        seen.append((fraction, stage))
        return stage != "probing the layers"

    with (
        pytest.warns(MiniCacheWarning, match="cancelled.*this time the cache is a plain one"),
        Llama(str(four_layers), calibrate="once", on_progress=on_progress, **ARGUMENTS) as llm,
    ):
        assert llm.kv_report().type_k == "q8_0"
    assert list(dict.fromkeys(stage for _, stage in seen)) == [
        "text",
        "reading the text",
        "fitting",
        "probing the layers",
    ]
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen)
    threads: set[int] = set()
    with pytest.warns(MiniCacheWarning):
        llm = Llama(
            str(four_layers),
            calibrate="background",
            on_progress=lambda *_: threads.add(threading.get_ident()),
            **ARGUMENTS,
        )
    with llm:
        assert llm.calibration is not None
        assert llm.calibration.wait(120)
        assert llm.calibration.plan is not None
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_what_cannot_be_calibrated_is_reported(
    four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "calibration_files", lambda: [tmp_path / "none.txt"])
    with pytest.warns(MiniCacheWarning):
        llm = Llama(str(four_layers), calibrate="background", **ARGUMENTS)
    with llm:
        assert llm.calibration is not None
        assert llm.calibration.wait(60)
        assert isinstance(llm.calibration.error, MiniCacheError)
        assert "none.txt" in str(llm.calibration.error)


def test_a_program_may_end_without_closing(four_layers: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from minicache_cpp import Llama\n"
        f"llm = Llama({str(four_layers)!r}, calibrate='background', **{ARGUMENTS!r})\n"
        "while llm.calibration.fraction == 0: time.sleep(0.01)\n"
        "print('still running:', not llm.calibration.done)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "still running: True\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_what_another_process_makes_is_waited_for(four_layers: Path, cache_dir: Path, tmp_path: Path) -> None:
    file = read_gguf(four_layers)
    stages: list[str] = []

    def on_progress(fraction: float, stage: str, detail: str) -> None:
        stages.append(stage)

    progress = Progress("calibrate", silent=True, on_progress=on_progress)
    found: list[Any] = []
    with locked(cache_dir / "calibrations" / f"{fingerprint(file)}.lock"):
        thread = threading.Thread(target=lambda: found.append(plan_maker.make_plan(file, 1, 0, progress)))
        thread.start()
        while not stages:
            time.sleep(0.01)
        plan_path(file).parent.mkdir()
        made(four_layers, tmp_path / "text.txt", plan_path(file))
    thread.join(60)
    assert set(stages) == {"waiting for another process, which calibrates this model"}
    assert found[0].path == plan_path(file)


def test_usage() -> None:
    usage = Usage()
    assert usage.idle_seconds > 1e6
    with usage:
        assert usage.idle_seconds == 0
    assert 0 <= usage.idle_seconds < 5

"""Folders that are not there, cannot be written or are full: one message, and nothing half-made stays."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import Llama, MiniCacheError, MiniCacheWarning, cli
from minicache_cpp.cache.plan_store import find_plan
from minicache_cpp.cache.room import CELL_BYTES, known_kv_bytes
from minicache_cpp.cache.settings import F16
from minicache_cpp.calibrate import samples
from minicache_cpp.modelfile.gguf_file import read_gguf
from support.calibrations import made


@pytest.fixture(params=["no home", "no folder"])
def nowhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a folder to keep files in."""
    if request.param == "no folder":
        (tmp_path / "file").write_text("not a folder")
        monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "file" / "cache"))
        return

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("MINICACHE_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)


@pytest.mark.usefixtures("nowhere")
def test_a_plan_with_a_path_of_its_own_is_made_without_a_folder(
    models: dict[str, Path], text: Path, tmp_path: Path, found: dict[str, Any]
) -> None:
    again = made(models["plain"], text, tmp_path / "plan.gguf")
    assert Path(again["plan"]).read_bytes() == Path(found["plan"]).read_bytes()
    assert find_plan(read_gguf(models["plain"])) is None


@pytest.mark.usefixtures("nowhere")
def test_what_needs_a_folder_says_so(models: dict[str, Path], text: Path) -> None:
    with pytest.raises(MiniCacheError, match="MINICACHE_CACHE_DIR"):
        made(models["plain"], text, None)  # type: ignore[arg-type]
    for choice in ("once", "background"):
        with pytest.warns(MiniCacheWarning, match=r"MINICACHE_CACHE_DIR|while the model is idle"):
            llm = Llama(
                str(models["plain"]),
                n_ctx=256,
                minicache="auto",
                calibrate=choice,
                verbose=False,
                n_threads=1,
            )
        with llm:
            assert llm.kv_report().type_k == "q8_0"
            if llm.calibration is not None:
                assert llm.calibration.wait(60)
                assert "MINICACHE_CACHE_DIR" in str(llm.calibration.error)


@pytest.mark.parametrize("in_the_way", ["plans", "plans/{fingerprint}.gguf/"])
def test_a_plan_that_has_no_place_is_refused_before_it_is_made(
    in_the_way: str,
    models: dict[str, Path],
    text: Path,
    tmp_path: Path,
    found: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / in_the_way.format(fingerprint=found["fingerprint"])
    if in_the_way.endswith("/"):
        path.mkdir(parents=True)
    else:
        path.write_text("not a folder")
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    with pytest.raises(MiniCacheError, match=r"the plan cannot be kept: .*; remove what is in the way"):
        made(models["plain"], text, None)  # type: ignore[arg-type]
    assert [one.name for one in tmp_path.iterdir()] == ["plans"]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has room for three arrays."""
    save, n_saved = samples.save_array, 0

    def full(path: Path, array: Any) -> None:
        nonlocal n_saved
        n_saved += 1
        if n_saved == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, array)

    monkeypatch.setattr(samples, "save_array", full)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_reported_and_gets_its_room_back(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(MiniCacheError, match=r"No space left.*with MINICACHE_CACHE_DIR$"):
        made(models["plain"], text, tmp_path / "plan.gguf")
    assert list((tmp_path / "cache").rglob("*.npy")) == []
    assert not (tmp_path / "plan.gguf").exists()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_reported_for_aligned_plans(
    models: dict[str, Path], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--text",
        text,
        "--tokens",
        1024,
        "--threads",
        1,
        "-o",
        tmp_path / "plan.gguf",
        "--mode",
        "aligned",
    ]
    assert cli.main(["calibrate", str(models["plain"]), *map(str, words)]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].endswith("name a folder that has room for them with TMPDIR")
    )
    assert not (tmp_path / "plan.gguf").exists()


def test_a_path_of_its_own_is_advised_where_it_helps(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(MiniCacheError, match=r"with MINICACHE_CACHE_DIR, or give -o PLAN$"):
        made(models["plain"], text, None)  # type: ignore[arg-type]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(MiniCacheError, match=r"with MINICACHE_CACHE_DIR$"):
        made(models["plain"], text, tmp_path / "plan.gguf")


def test_what_no_plan_makes_fit_is_refused_before_one_is_made(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minicache_cpp.calibrate.calibration.calibrate", None)

    def refused(n_ctx: int) -> None:
        with pytest.raises(MiniCacheError, match="smaller n_ctx"):
            Llama(str(models["plain"]), n_ctx=n_ctx, minicache="auto", calibrate="once", verbose=False)

    refused(2_000_000_000)
    # with the plan that would be made, one of ratio 5, it needs a little more than is free
    n_ctx = 400_128
    needed = known_kv_bytes(read_gguf(models["plain"]), F16, n_ctx) // 5 + n_ctx * CELL_BYTES
    monkeypatch.setattr("minicache_cpp.host.memory.available_bytes", lambda: needed - 1)
    refused(n_ctx)

"""scripts/bootstrap.py: its help, and its message where tools are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bootstrap
from support.paths import ROOT

BOOTSTRAP = ROOT / "scripts" / "bootstrap.py"


@pytest.mark.parametrize("arguments", [[], ["setup"], ["chat"], ["serve"], ["test"], ["bench"]])
def test_bootstrap_help(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, BOOTSTRAP, *arguments, "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "python3 scripts/bootstrap.py" in result.stdout


def test_bootstrap_names_missing_tools(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, BOOTSTRAP, "setup"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "not found: cmake, git, a C++ compiler" in result.stderr
    assert "apt-get install" in result.stderr


@pytest.mark.parametrize(
    ("command", "last"),
    [("chat", "minicache_cpp.chat"), ("serve", "minicache_cpp.serve"), ("bench", "bench")],
)
def test_the_demo_model_is_fetched_unless_a_model_is_named(
    command: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(bootstrap, "check_tools", lambda: None)
    monkeypatch.setattr(bootstrap, "set_up", lambda extras, programs=(): done.extend(programs))
    monkeypatch.setattr(bootstrap, "fetch_demo_model", lambda: done.append("fetched"))
    monkeypatch.setattr(bootstrap, "become", lambda command, environment: done.append(command[-1]) or 0)
    for arguments, expected in (
        ([], ["fetched", last]),
        (["--", "--threads", "1"], ["fetched", "1"]),
        (["--", "model.gguf"], ["model.gguf"]),
    ):
        done.clear()
        assert bootstrap.main([command, *arguments]) == 0
        # a program that most commands do without
        assert done == (["llama-server"] if command == "serve" else []) + expected


def test_a_demo_model_that_cannot_be_fetched_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bootstrap, "PYTHON", sys.executable)
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(bootstrap.BootstrapError, match="smollm2-135m could not be fetched") as caught:
        bootstrap.fetch_demo_model()
    assert caught.value.status == 2
    assert "minicache: smollm2-135m cannot be kept in" in capfd.readouterr().err


def test_a_target_is_built_again_where_its_sources_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    release = bootstrap.RELEASE
    release.bin.mkdir(parents=True)
    assert not release.is_built(["llama-server"])
    bootstrap.write_json(
        release.stamp, {"llama-server": release.source_key(), "minicache-libraries": "older"}
    )
    assert release.is_built(["llama-server"])
    assert not release.is_built(["llama-server", "minicache-libraries"])


@pytest.mark.parametrize(
    ("cmake_args", "server", "expected"),
    [("", False, "OFF"), ("-DMINICACHE_MTMD=ON", False, "ON"), ("-DMINICACHE_MTMD=off", True, "ON")],
)
def test_libmtmd_is_installed_where_it_was_built(
    monkeypatch: pytest.MonkeyPatch, cmake_args: str, server: bool, expected: str
) -> None:
    """With llama-server, which needs it, or where it was asked for: else one of other sources may lie there."""
    given: list[str] = []
    monkeypatch.setenv("CMAKE_ARGS", cmake_args)
    monkeypatch.setattr(bootstrap.NativeBuild, "is_built", lambda self, targets: server)
    monkeypatch.setattr(bootstrap, "pip", lambda *_, environment: given.append(environment["CMAKE_ARGS"]))
    bootstrap.pip_install(".")
    assert f"-DMINICACHE_MTMD={expected}" in given[0]

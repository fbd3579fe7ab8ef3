"""native/cmake/FetchUpstream.cmake: only the pinned archive of upstream is used."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path

from support.paths import ROOT
from support.small_upstream import CMAKE


def fetch(archive: Path | None, cache: Path) -> subprocess.CompletedProcess[str]:
    given = [] if archive is None else [f"-DMINICACHE_UPSTREAM_ARCHIVE={archive}"]
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(cache),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(cache),
    }
    command = ["cmake", *given, "-P", str(CMAKE / "FetchUpstream.cmake")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_another_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "llama_cpp_python-0.3.36.tar.gz"
    archive.write_bytes(b"something else")
    result = fetch(archive, tmp_path)
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "has sha256" in message
    assert pinned("SHA256") in message

    result = fetch(tmp_path / "absent.tar.gz", tmp_path)
    assert result.returncode != 0
    assert "is not a file" in " ".join(result.stderr.split())


def test_without_an_index_the_message_names_a_way_out(tmp_path: Path) -> None:
    result = fetch(None, tmp_path)
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "could not be fetched" in message
    assert "-DMINICACHE_UPSTREAM_ARCHIVE=PATH" in message
    assert not list((tmp_path / "minicache-cpp").iterdir())


def test_a_download_with_another_content_is_refused(tmp_path: Path) -> None:
    """An index may serve anything, so what pip downloads is checked before it is kept."""
    name = f"llama_cpp_python-{pinned('VERSION')}"
    source = tmp_path / name
    source.mkdir()
    build_system = (
        '[build-system]\nrequires = ["scikit-build-core"]\nbuild-backend = "scikit_build_core.build"\n'
    )
    (source / "pyproject.toml").write_text(build_system)
    with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as file:
        file.add(source, name)
    result = fetch(None, tmp_path)
    assert result.returncode != 0
    assert "has sha256" in " ".join(result.stderr.split())
    assert not list((tmp_path / "minicache-cpp").iterdir())


def pinned(what: str) -> str:
    text = (CMAKE / "UpstreamVersion.cmake").read_text()
    match = re.search(rf'MINICACHE_UPSTREAM_{what} +"(.+?)"', text)
    assert match
    return match[1]


def test_one_version_is_pinned_everywhere() -> None:
    version = pinned("VERSION")
    assert f'"llama-cpp-python=={version}"' in (ROOT / "pyproject.toml").read_text()
    assert (
        f'LLAMA_CPP_VERSION = "{version}"'
        in (ROOT / "python" / "minicache_cpp" / "native" / "library.py").read_text()
    )

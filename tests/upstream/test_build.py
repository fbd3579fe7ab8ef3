"""The build's own parts: the archive that is fetched, the patches that are applied and renewed, the pinned version."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from support.paths import ROOT

CMAKE = ROOT / "native" / "cmake"
RENEW = ROOT / "scripts" / "renew_patches.py"
BOOTSTRAP = ROOT / "scripts" / "bootstrap.py"

COUNTING = "".join(f"line {number}\n" for number in range(1, 41))

ONE = """\
The first hook.

diff --git a/src/counting.txt b/src/counting.txt
--- a/src/counting.txt
+++ b/src/counting.txt
@@ -2,7 +2,8 @@ line 1
 line 2
 line 3
 line 4
-line 5
+line five
+line five and a half
 line 6
 line 7
 line 8
@@ -29,6 +30,7 @@ line 28
 line 29
 line 30
 line 31
+line 31 and a half
 line 32
 line 33
 line 34
"""

TWO = """\
diff --git a/src/counting.txt b/src/counting.txt
--- a/src/counting.txt
+++ b/src/counting.txt
@@ -3,7 +3,7 @@ line 2
 line 3
 line 4
 line five
-line five and a half
+line 5.5
 line 6
 line 7
 line 8
diff --git a/src/new/added.txt b/src/new/added.txt
new file mode 100644
--- /dev/null
+++ b/src/new/added.txt
@@ -0,0 +1 @@
+added
"""


class Upstream:
    """A source distribution with a small llama.cpp in it, a place to unpack it, and patches."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.archive = directory / "llama_cpp_python-9.9.9.tar.gz"
        self.tree = directory / "tree"
        self.patches = directory / "patches"
        self.patches.mkdir()
        self.pack(COUNTING)

    def pack(self, counting: str) -> None:
        source = self.directory / "llama_cpp_python-9.9.9"
        files = {
            "setup.py": "raise SystemExit('never run')\n",
            "vendor/llama.cpp/CMakeLists.txt": "",
            "vendor/llama.cpp/src/counting.txt": counting,
            "vendor/llama.cpp/src/other.txt": "other\n",
        }
        for name, text in files.items():
            path = source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        with tarfile.open(self.archive, "w:gz") as file:
            file.add(source, source.name)

    def apply(self) -> subprocess.CompletedProcess[str]:
        script = str(CMAKE / "ApplyPatches.cmake")
        settings = [
            f"-DARCHIVE={self.archive}",
            f"-DTREE={self.tree}",
            f"-DPATCHES={self.patches}",
            "-DVERSION=9.9.9",
        ]
        return subprocess.run(["cmake", *settings, "-P", script], capture_output=True, text=True, check=False)

    def counting(self) -> str:
        return (self.tree / "src" / "counting.txt").read_text()

    def files(self) -> dict[str, tuple[str, int]]:
        """Every file of the tree, with its content and time."""
        paths = [path for path in self.tree.rglob("*") if path.is_file()]
        return {
            str(path.relative_to(self.tree)): (path.read_text(), path.stat().st_mtime_ns) for path in paths
        }


@pytest.fixture(params=["alone", "inside a repository"])
def upstream(request: pytest.FixtureRequest, tmp_path: Path) -> Upstream:
    # git takes paths below another repository's root for that repository's
    if request.param == "inside a repository":
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    directory = tmp_path / "build"
    directory.mkdir()
    return Upstream(directory)


def test_no_patches(upstream: Upstream) -> None:
    result = upstream.apply()
    assert result.returncode == 0, result.stderr
    assert upstream.counting() == COUNTING


def test_patches_are_applied_in_order_and_once(upstream: Upstream) -> None:
    (upstream.patches / "0002-two.patch").write_text(TWO)
    (upstream.patches / "0001-one.patch").write_text(ONE)
    result = upstream.apply()
    assert result.returncode == 0, result.stderr
    assert "line five\nline 5.5\nline 6" in upstream.counting()
    assert "line 31 and a half\n" in upstream.counting()
    assert (upstream.tree / "src" / "new" / "added.txt").read_text() == "added\n"
    assert not list(upstream.directory.glob("tree.*"))

    applied = upstream.files()
    os.remove(upstream.tree / ".minicache-patches")  # even where it is forgotten what was applied
    assert upstream.apply().returncode == 0
    again = upstream.files()
    del applied[".minicache-patches"], again[".minicache-patches"]
    assert again == applied  # down to the times, so that nothing is compiled again


def test_a_removed_patch_is_taken_back(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE)
    (upstream.patches / "0002-two.patch").write_text(TWO)
    assert upstream.apply().returncode == 0
    other = upstream.files()["src/other.txt"]

    (upstream.patches / "0002-two.patch").unlink()
    assert upstream.apply().returncode == 0
    assert "line five and a half\n" in upstream.counting()
    assert not (upstream.tree / "src" / "new" / "added.txt").exists()

    (upstream.patches / "0001-one.patch").unlink()
    assert upstream.apply().returncode == 0
    assert upstream.counting() == COUNTING
    assert upstream.files()["src/other.txt"] == other


def test_an_edited_patch_touches_the_file_again(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE)
    assert upstream.apply().returncode == 0
    before = upstream.files()["src/counting.txt"][1]
    (upstream.patches / "0001-one.patch").write_text(ONE.replace("five and a half", "5.5"))
    assert upstream.apply().returncode == 0
    assert "line 5.5\n" in upstream.counting()
    assert upstream.files()["src/counting.txt"][1] > before


def test_a_misfit_is_told_and_changes_nothing(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE)
    assert upstream.apply().returncode == 0
    before = upstream.files()

    (upstream.patches / "0002-two.patch").write_text(TWO)
    (upstream.patches / "0003-three.patch").write_text(ONE.replace("counting", "other"))
    result = upstream.apply()
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "native/patches/0003-three.patch does not fit llama-cpp-python 9.9.9" in message
    assert "src/other.txt: hunk 1" in message
    assert "src/other.txt: hunk 2" in message
    assert "python3 scripts/renew_patches.py checkout DIR" in message
    assert upstream.files() == before
    assert not list(upstream.directory.glob("tree.*"))


def test_one_hunk_of_two(upstream: Upstream) -> None:
    upstream.pack(COUNTING.replace("line 30\n", "line thirty\n"))
    (upstream.patches / "0001-one.patch").write_text(ONE)
    result = upstream.apply()
    assert result.returncode != 0
    assert "src/counting.txt: hunk 2" in result.stderr
    assert "hunk 1" not in result.stderr
    assert "line five" not in upstream.counting()


def test_a_missing_file_is_told(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE.replace("counting", "absent"))
    result = upstream.apply()
    assert result.returncode != 0
    assert "src/absent.txt: No such file or directory" in result.stderr


def test_a_patch_must_name_its_files(upstream: Upstream) -> None:
    # the diff --git lines say which files to unpack
    (upstream.patches / "0001-one.patch").write_text(ONE.replace("diff --git", "diff"))
    result = upstream.apply()
    assert result.returncode != 0
    assert "renew_patches.py" in result.stderr


# ---- the archive


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


def test_without_an_index_the_way_out_is_told(tmp_path: Path) -> None:
    result = fetch(None, tmp_path)
    assert result.returncode != 0
    message = " ".join(result.stderr.split())
    assert "could not be fetched" in message
    assert "-DMINICACHE_UPSTREAM_ARCHIVE=PATH" in message
    assert not list((tmp_path / "minicache-cpp").iterdir())


def test_a_download_with_another_content_is_refused(tmp_path: Path) -> None:
    """An index may serve anything: what pip brought is checked before it is kept."""
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


# ---- renew_patches.py


def renew(upstream: Upstream, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, RENEW, "--patches", upstream.patches, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def git(directory: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", directory, *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_checkout_and_export_round_trip(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE)
    (upstream.patches / "0002-two.patch").write_text(TWO)
    repository = upstream.directory / "hooks"
    result = renew(upstream, "checkout", repository, "--archive", upstream.archive)
    assert result.returncode == 0, result.stderr
    assert git(repository, "log", "--format=%s").split() == ["two", "one", "upstream"]

    result = renew(upstream, "export", repository)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_text() for path in upstream.patches.iterdir()} == {
        "0001-one.patch": ONE,
        "0002-two.patch": TWO,
    }


def test_export_follows_the_commits(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE)
    repository = upstream.directory / "hooks"
    renew(upstream, "checkout", repository, "--archive", upstream.archive)

    (repository / "src" / "other.txt").write_text("another\n")
    result = renew(upstream, "export", repository)
    assert result.returncode == 2
    assert "not committed" in result.stderr

    git(repository, "commit", "--all", "-m", "Not a file name!")
    assert renew(upstream, "export", repository).returncode == 2

    git(repository, "commit", "--amend", "-m", "other-hook", "-m", "Why it is there.")
    assert renew(upstream, "export", repository).returncode == 0
    written = (upstream.patches / "0002-other-hook.patch").read_text()
    assert written.startswith(
        "Why it is there.\n\ndiff --git a/src/other.txt b/src/other.txt\n--- a/src/other.txt\n"
    )

    git(repository, "reset", "--hard", "upstream")
    git(repository, "commit", "--allow-empty", "-m", "nothing")
    assert renew(upstream, "export", repository).returncode == 0
    assert [path.name for path in upstream.patches.iterdir()] == ["0001-nothing.patch"]


def test_checkout_stops_at_a_misfit_and_goes_on(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE)
    (upstream.patches / "0002-two.patch").write_text(TWO)
    upstream.pack(COUNTING.replace("line 30\n", "line thirty\n"))
    repository = upstream.directory / "hooks"
    result = renew(upstream, "checkout", repository, "--archive", upstream.archive)
    assert result.returncode == 1
    assert "0001-one.patch does not fit" in result.stdout
    assert "src/counting.txt: hunk 2" in result.stdout

    result = renew(upstream, "checkout", repository)
    assert result.returncode == 2  # the rejected hunk is not worked in yet
    assert "counting.txt.rej" in result.stderr

    (repository / "src" / "counting.txt.rej").unlink()
    git(repository, "commit", "--all", "-m", "one")
    result = renew(upstream, "checkout", repository)
    assert result.returncode == 0, result.stderr
    assert renew(upstream, "export", repository).returncode == 0
    assert upstream.apply().returncode == 0


def test_port(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE)
    (upstream.patches / "0002-two.patch").write_text(TWO)
    result = renew(upstream, "port", "9.9.9", upstream.archive)
    assert result.returncode == 0, result.stderr
    assert "2 of 2 patches fit" in result.stdout

    upstream.pack(COUNTING.replace("line 30\n", "line thirty\n"))
    result = renew(upstream, "port", "9.9.9", upstream.archive)
    assert result.returncode == 1
    assert "0001-one.patch: does not fit\n    src/counting.txt: hunk 2\n0002-two.patch: fits" in result.stdout

    assert renew(upstream, "port", "9.9.9", upstream.directory / "absent").returncode == 2


# ---- bootstrap.py


@pytest.mark.parametrize("arguments", [[], ["setup"], ["chat"], ["test"], ["bench"]])
def test_bootstrap_help(arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, BOOTSTRAP, *arguments, "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert "python3 scripts/bootstrap.py" in result.stdout


def test_bootstrap_tells_what_is_missing(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, BOOTSTRAP, "setup"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "not found: cmake, git, a C++ compiler" in result.stderr
    assert "apt-get install" in result.stderr

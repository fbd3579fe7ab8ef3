"""scripts/renew_patches.py turns patches into commits and back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.paths import ROOT
from support.small_upstream import COUNTING, ONE, TWO, Upstream

RENEW = ROOT / "scripts" / "renew_patches.py"


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
    assert result.returncode == 2  # the rejected hunk has not been resolved
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

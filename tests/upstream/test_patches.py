"""native/cmake/ApplyPatches.cmake: patches are applied in order and once, or none of them is."""

from __future__ import annotations

import os

from support.small_upstream import COUNTING, ONE, TWO, Upstream


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
    # even where the record of what was applied is lost
    os.remove(upstream.tree / ".minicache-patches")
    assert upstream.apply().returncode == 0
    again = upstream.files()
    del applied[".minicache-patches"], again[".minicache-patches"]
    assert again == applied  # with the same times, so that nothing is compiled again


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


def test_an_edited_patch_is_applied_again(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE)
    assert upstream.apply().returncode == 0
    before = upstream.files()["src/counting.txt"][1]
    (upstream.patches / "0001-one.patch").write_text(ONE.replace("five and a half", "5.5"))
    assert upstream.apply().returncode == 0
    assert "line 5.5\n" in upstream.counting()
    assert upstream.files()["src/counting.txt"][1] > before


def test_a_misfit_is_reported_and_changes_nothing(upstream: Upstream) -> None:
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


def test_a_missing_file_is_reported(upstream: Upstream) -> None:
    (upstream.patches / "0001-one.patch").write_text(ONE.replace("counting", "absent"))
    result = upstream.apply()
    assert result.returncode != 0
    assert "src/absent.txt: No such file or directory" in result.stderr


def test_a_patch_must_name_its_files(upstream: Upstream) -> None:
    # the diff --git lines name the files to unpack
    (upstream.patches / "0001-one.patch").write_text(ONE.replace("diff --git", "diff"))
    result = upstream.apply()
    assert result.returncode != 0
    assert "renew_patches.py" in result.stderr

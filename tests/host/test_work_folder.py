"""Folders for intermediate results have one user at a time and are removed when the work is done."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minicache_cpp.host.work_folder import work_folder


def test_two_users_do_not_share_a_folder(tmp_path: Path) -> None:
    with work_folder(tmp_path / "work") as one:
        assert one == tmp_path / "work"
        (one / "file").write_text("kept")
        command = [sys.executable, "-c", WORK, str(tmp_path / "work")]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
        assert done.stdout.strip() != str(one)
        assert [path.name for path in one.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), work_folder(tmp_path / "work") as one:
        raise KeyError
    assert (tmp_path / "work").is_dir()


WORK = """
import sys
from pathlib import Path
from minicache_cpp.host.work_folder import work_folder
with work_folder(Path(sys.argv[1])) as folder:
    print(folder)
"""

"""How much memory is free, and contexts that are refused because they need more."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.cache.room import require_room
from minicache_cpp.host import memory
from minicache_cpp.host.memory import available_bytes


def test_the_limit_of_a_cgroup_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "CGROUP", cgroup)
    assert available_bytes() is None  # nothing is known, so nothing is refused
    require_room(1 << 40, 1 << 60)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert available_bytes() == 4000 * 1024
    (cgroup / "memory.current").write_text("3000000\n")
    (cgroup / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert available_bytes() == 4000 * 1024
    (cgroup / "memory.max").write_text("4000000\n")
    assert available_bytes() == 1500000
    require_room(4096, 1000000, 200000)
    with pytest.raises(MiniCacheError, match="smaller --ctx"):
        require_room(4096, 1000000, 600000)
    with pytest.raises(MiniCacheError, match="2 contexts of 4,096 tokens need"):  # the cells of each count
        require_room(4096, 1000000, 200000, n_contexts=2)

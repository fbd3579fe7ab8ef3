"""How many threads a command starts where it is not told, and work that threads share."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from minicache_cpp.host import threads


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu.max": "100000 0"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "0"}, None),
        ({"cpuacct,cpu/c/d/cpu.cfs_quota_us": "150000", "cpuacct,cpu/c/d/cpu.cfs_period_us": "100000"}, 1.5),
        # the smallest of a group and those that it is in
        ({"a.slice/b.scope/cpu.max": "max 100000", "a.slice/cpu.max": "200000 100000"}, 2.0),
        ({"a.slice/b.scope/cpu.max": "400000 100000", "cpu.max": "300000 100000"}, 3.0),
        ({"other.slice/cpu.max": "100000 100000"}, None),
        ({"cpu/c/d/cpu.cfs_quota_us": "250000", "cpu/c/d/cpu.cfs_period_us": "100000"}, 2.5),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_is_kept(
    files: dict[str, str], quota: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text("2:cpuset:/\n1:cpuacct,cpu:/c/d\nnonsense\n0::/a.slice/b.scope\n")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert threads.cpu_quota() == quota
    assert threads.default_threads() == (8 if quota is None else int(quota))
    assert threads.usable_cores() == (16 if quota is None else int(quota))


def test_work_side_by_side_comes_back_in_the_order_of_its_items() -> None:
    both_begun = threading.Barrier(2, timeout=20)

    def work(number: int) -> int:
        if number < 2:
            both_begun.wait()  # breaks unless two threads get here at a time
        return number * number

    assert list(threads.side_by_side(work, range(5), 2)) == [0, 1, 4, 9, 16]


def test_what_work_raises_ends_what_is_done_side_by_side() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            raise ValueError("number 1")
        time.sleep(0.01)
        return number

    results = threads.side_by_side(work, range(1000), 1)
    with pytest.raises(ValueError, match="number 1"):
        list(results)
    assert len(begun) < 1000

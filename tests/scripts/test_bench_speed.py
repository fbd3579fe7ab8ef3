"""scripts/bench_speed.py: all measurements in a row, at sizes too small for the figures to mean anything."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import bench_speed


def test_parts_that_fail_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(run: bench_speed.Run) -> tuple[Any, str]:
        run.call([sys.executable, "-c", "import sys; sys.exit('there is none')"])
        raise AssertionError

    monkeypatch.setattr(bench_speed, "PARTS", {"broken": fails, "fine": lambda _: (7, "| a table |")})
    assert bench_speed.main([str(tmp_path), "--bin", str(library_dir), "--threads", "1"]) == 1
    text = (tmp_path / "speed.md").read_text()
    assert capsys.readouterr().out == text
    assert "not measured" in text and "there is none" in text and "| a table |" in text
    parts = json.loads((tmp_path / "speed.json").read_text())["parts"]
    assert (parts["fine"]["found"], len(parts["broken"]["commands"])) == (7, 1)
    # one part is measured again, and the report keeps the others
    bench_speed.PARTS["broken"] = lambda _: (8, "| mended |")
    again = [str(tmp_path), "--bin", str(library_dir), "--threads", "1", "--only", "broken"]
    assert bench_speed.main(again) == 0
    text = (tmp_path / "speed.md").read_text()
    assert "| mended |" in text and "| a table |" in text and "not measured" not in text


def test_all_of_it_runs(tmp_path: Path, library_dir: Path) -> None:
    arguments = [str(tmp_path), "--bin", str(library_dir), "--threads", "1", "--quick"]
    assert bench_speed.main([*arguments, "--only", "model", "--only", "throughput"]) == 0
    text = (tmp_path / "speed.md").read_text()
    assert "minicache_cpp bench tiny.gguf" in text and str(tmp_path) not in text
    for name in ("q4_0, plain layers of ours", "code 5", "code 8", "slerp q4_0"):
        assert text.count(name) >= 2  # once for each length
    assert "| bench_throughput.py | code 5 | 256 |" in text


def test_upstreams_bench_is_the_second_witness(tools_dir: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--bin", str(tools_dir), "--threads", "1", "--quick", "--only", "batched"]
    assert bench_speed.main(arguments) == 0
    text = (tmp_path / "speed.md").read_text()
    assert "LLAMA_MINICACHE=plan=tiny-code-5.plan.gguf llama-batched-bench" in text
    assert "| llama-batched-bench | code 5 | 256 |" in text

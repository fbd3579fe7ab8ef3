"""LongBench's tasks, prompts and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.longbench.items import find_files, read_items
from minicache_cpp.longbench.tasks import TASKS, prompts_from
from support.longbench_files import line, write


def test_all_tasks_of_longbench_are_there() -> None:
    assert len(TASKS) == 21
    for task in TASKS.values():
        assert "{context}" in task.prompt
        assert task.prompt.count("{") == task.prompt.count("{context}") + task.prompt.count("{input}")


def test_prompts_can_be_those_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "dataset2prompt.json"
    path.write_text(json.dumps({"qasper": "Article: {context} {input}"}), encoding="utf-8")
    tasks = prompts_from(path)
    assert tasks["qasper"].prompt == "Article: {context} {input}"
    assert tasks["qasper"].n_most == 128
    assert tasks["trec"] == TASKS["trec"]
    path.write_text("[1]", encoding="utf-8")
    with pytest.raises(MiniCacheError, match="is not a JSON object"):
        prompts_from(path)


def test_files_are_found_by_their_names(tmp_path: Path) -> None:
    write(tmp_path, "qasper_e", line("c", "q", "a"))
    write(tmp_path, "trec", line("c", "q", "a"), line("c", "q2", "b"))
    write(tmp_path, "other", line("c", "q", "a"))
    files = find_files(tmp_path, [])
    assert list(files) == ["qasper_e", "trec"]
    assert [item.input for item in read_items(files["trec"], 1)] == ["q"]

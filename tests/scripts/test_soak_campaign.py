"""scripts/campaigns soak: short runs find nothing, and leaks and a drift that were planted are found."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from campaigns.__main__ import main

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def campaign(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["soak", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_chats_leave_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = campaign(capsys, "--kind", "chats", "--steps", "60")
    assert found["findings"] == []
    assert code == 0
    counts = found["counts"]
    assert counts["chats"] == 60
    for what in ("ask", "stop", "abort", "save", "load", "leave", "state", "shift"):
        assert counts[f"chats, {what}"] > 0


def test_requests_leave_nothing_behind(capsys: pytest.CaptureFixture[str], tools_dir: Path) -> None:
    code, found = campaign(capsys, "--kind", "server", "--steps", "45")
    assert found["findings"] == []
    assert code == 0
    for what in ("answer", "stream", "leave", "save", "restore", "shift"):
        assert found["counts"][f"server, {what}"] > 0


def test_a_long_text_in_a_shifted_context_does_not_drift(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = campaign(capsys, "--kind", "drift", "--tokens", "2048")
    assert found["findings"] == []
    assert code == 0
    assert found["counts"]["tokens of drift"] == 2048
    assert found["counts"]["context shifts of drift"] > 10
    assert found["largest"]["KL in the last pass"] > 0


@pytest.mark.parametrize(
    ("planted", "what"), [("memory", "private MiB"), ("files", "open files"), ("threads", "threads")]
)
def test_what_is_not_given_back_is_found(capsys: pytest.CaptureFixture[str], planted: str, what: str) -> None:
    code, found = campaign(capsys, "--kind", "chats", "--steps", "18", "--planted", planted)
    assert code == 1
    assert [one["what"].startswith(f"{what} grow") for one in found["findings"]] == [True]


def test_a_drift_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = campaign(capsys, "--kind", "drift", "--tokens", "2048", "--planted", "drift")
    assert code == 1
    assert found["findings"][0]["what"].startswith("the loss drifts")

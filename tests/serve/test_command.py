"""`minicache serve` from the command line: which cache it takes, what it says, what it refuses, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import gguf
import pytest

from minicache_cpp.cache import size
from minicache_cpp.cache.settings import CacheSpec
from minicache_cpp.cli import main
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native import library
from minicache_cpp.native.model_shape import model_shape
from minicache_cpp.serve.program import NAME, find_server
from support import tiny_models
from support.loaded import Loaded
from support.servers import run, serving, started

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture
def alone(planned: Loaded, tmp_path: Path) -> Path:
    """The model without its plan."""
    return Path(shutil.copy(planned.path, tmp_path / "alone.gguf"))


def test_the_plan_beside_the_model_is_found(tools_dir: Path, planned: Loaded) -> None:
    plan = planned.path.with_name("tiny.plan.gguf")
    with serving(tools_dir, planned.path, "--ctx", 300, "--slots", 3, "--json") as served:
        found = served.found
        assert served.stop() == 0
    assert found["cache"] == str(plan)
    assert (found["context"], found["slots"]) == (512, 3)
    shape, spec = model_shape(read_gguf(planned.path)), CacheSpec.parse(str(plan))
    assert found["kv_bytes"] == size.kv_bytes(shape, spec, 512, 3)
    assert found["kv_bytes_f16"] == 3 * 6 * 2 * 64 * 2 * 2 * 512
    # the library counts what it has allocated
    told = f"{found['kv_bytes'] / 2**20:.2f} MiB instead of {found['kv_bytes_f16'] / 2**20:.2f} MiB as f16"
    assert f"[the KV cache is merged: {told}" in served.said
    assert len(served.said.splitlines()) == 1


def test_a_plan_is_made_before_the_port_opens_and_found_again(tools_dir: Path, tmp_path: Path) -> None:
    alone = tiny_models.random_model(n_layer=2).write(tmp_path / "two-layers.gguf")
    own = {"MINICACHE_CACHE_DIR": str(tmp_path / "cache")}
    plans = tmp_path / "cache" / "plans"
    with serving(tools_dir, alone, "--calibrate", "once", "--json", **own) as served:
        assert [Path(served.found["cache"])] == list(plans.iterdir())
    assert "so one is made now" in served.said
    assert "calibrate: " in served.said
    assert served.found["ratio"] > 1.88  # q8_0's
    with serving(tools_dir, alone, "--calibrate", "never", "--json", **own) as again:
        assert again.found["cache"] == served.found["cache"]
    assert "calibrate" not in again.said


@pytest.mark.parametrize(
    ("arguments", "cache", "words"),
    [
        (
            ["--calibrate", "never"],
            "q8_0",
            "plain q8_0: 3.19 MiB instead of 6.00 MiB as f16, 1.88 times smaller]",
        ),
        (["--no-minicache"], "f16", "the KV cache is plain f16: 6.00 MiB]"),
        (["--config", "slerp:type=q4_0"], None, "the KV cache is merged"),
        (
            ["--config", "plain:k=q8_0,v=q4_0,first=1:f16"],
            None,
            "a cache type for each layer: 3.03 MiB instead of 6.00 MiB",
        ),
    ],
)
def test_without_a_plan(
    tools_dir: Path, alone: Path, arguments: list[str], cache: str | None, words: str
) -> None:
    # a setting for other programs does not count
    with serving(
        tools_dir, alone, "--ctx", 1024, "--slots", 2, *arguments, "--json", LLAMA_MINICACHE="nonsense"
    ) as served:
        assert served.found["cache"] == cache or cache is None
        status, answer = served.post("/completion", prompt="hello", n_predict=4)
        assert status == 200
        assert answer["tokens_predicted"] == 4
    assert words in served.said
    assert "[this model has no plan" in served.said or "never" not in arguments


@POSIX
def test_sigterm_ends_the_server(tools_dir: Path, planned: Loaded) -> None:
    with serving(tools_dir, planned.path) as served:
        port = int(served.address.rpartition(":")[2])
        assert served.stop(signal.SIGTERM) == 0
    assert len(served.said.splitlines()) == 1  # what the cache takes
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


@POSIX
def test_ctrl_c_ends_the_server_while_it_answers(tools_dir: Path, planned: Loaded) -> None:
    with serving(tools_dir, planned.path, "--", "--context-shift") as served, served.client() as client:
        stream = client.completions.create(model="tiny", prompt="hello", max_tokens=1_000_000, stream=True)
        next(iter(stream))
        assert served.stop(signal.SIGINT) == 0
    assert "Traceback" not in served.said


# answers /health once it may, writes its process id, and ends at the second SIGTERM
STUBBORN = """\
import http.server, os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[0]).parent
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if (folder / "ready").exists() else 503)
        self.end_headers()
asked = []
signal.signal(signal.SIGTERM, lambda *_: os._exit(1) if asked else asked.append(1))
(folder / "pid").write_text(str(os.getpid()))
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    """The folder of a llama-server that ignores the signal to stop."""
    program = tmp_path / "llama-server"
    program.write_text(f"#!{sys.executable}\n{STUBBORN}")
    program.chmod(0o755)
    return tmp_path


def process_of(folder: Path) -> int:
    """The process id of such a server, once it runs."""
    end = time.monotonic() + 60
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    return int((folder / "pid").read_text())


@POSIX
def test_a_second_ctrl_c_does_not_wait(stubborn: Path, planned: Loaded) -> None:
    (stubborn / "ready").touch()
    with serving(stubborn, planned.path) as served:
        served.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert served.stop(signal.SIGINT) == 130
    assert "llama-server says nothing of MiniCache" in served.said  # it knows nothing of plans
    with pytest.raises(ProcessLookupError):
        os.kill(process_of(stubborn), 0)


@POSIX
def test_ctrl_c_before_the_server_answers(stubborn: Path, planned: Loaded) -> None:
    with started(stubborn, planned.path) as starting:
        server = process_of(stubborn)
        assert starting.stop(signal.SIGINT) == 130
    assert not starting.said
    with pytest.raises(ProcessLookupError):  # it was killed after some seconds
        os.kill(server, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none.gguf"], "does not exist"),
        (["{tmp}/text.gguf"], "is not a GGUF file"),
        (["no-such-model"], "neither a file nor the name of a model"),
        (["{model}", "--ctx", "0"], "--ctx 0: it must be 1 or more"),
        (["{model}", "--slots", "0"], "--slots 0: it must be 1 or more"),
        (["{model}", "--slots", "257"], "--slots 257: it must be 256 or less"),
        (["{model}", "--port", "70000"], "65535 or less"),
        (["{model}", "--port", "{port}"], "no server can listen there"),
        (["{model}", "--host", "no.such.host.invalid"], "no server can listen there"),
        (["{model}", "--host", "server.sock"], "one address"),
        (["{model}", "--config", "q3"], "not a cache"),
        (["{model}", "--config", "{model}"], "is not a plan"),
        (["{model}", "--config", "{plan}", "--ctx", "100000000"], "of memory is free"),
        (["{model}", "--ctx", "20000000", "--slots", "200"], "--ctx 20000000: it must be 10737418 or less"),
        (["{model}", "--ctx", "8000000", "--slots", "200"], "200 contexts of 8,000,000 tokens need"),
        (["{model}", "--save", "{tmp}/text.gguf"], "the folder cannot be made"),
        (["{model}", "--", "--slot-save-path", "{tmp}"], "is what --save of minicache serve decides"),
        (["{model}", "--", "-c", "100"], "-c after -- is what --ctx of minicache serve decides"),
        (["{model}", "--", "--cache_type_k", "f16"], "--config"),
        (["{model}", "--", "--hf-repo", "some/model"], "what MODEL of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tools_dir: Path,
    planned: Loaded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("MINICACHE_TOOLS_BIN", str(tools_dir))
    (tmp_path / "text.gguf").write_text("hello")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {
            "{tmp}": str(tmp_path),
            "{model}": str(planned.path),
            "{plan}": str(planned.path.with_name("tiny.plan.gguf")),
            "{port}": str(taken.getsockname()[1]),
        }
        for name, path in names.items():
            arguments = [argument.replace(name, path) for argument in arguments]
        assert main(["serve", *arguments]) == 2
    said = capfd.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, said.err
    assert words in lines[0]


def test_an_empty_folder_is_not_the_current_one(planned: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    """As of a variable that is not set: clients could replace any file of the folder that the server runs in."""
    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(planned.path), "--save", ""])
    assert "argument --save: the path is empty" in capsys.readouterr().err.splitlines()[-1]


def test_a_server_that_dies_at_start_is_one_line_with_its_status(
    tools_dir: Path, planned: Loaded, tmp_path: Path
) -> None:
    done = run(tools_dir, planned.path, "--", "--nonsense")
    assert done.returncode == 1
    assert done.stderr == (
        "minicache: llama-server ended with status 1 before it answered: error: invalid argument: --nonsense\n"
    )
    hollow = tmp_path / "hollow.gguf"
    writer = gguf.GGUFWriter(hollow, "llama")  # keys without tensors
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_head_count(2)
    tiny_models.finish(writer)
    done = run(tools_dir, hollow, "--config", "f16")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "before it answered: " in line
    assert "llama" in line.partition("answered: ")[2]


def test_llama_servers_own_help(tools_dir: Path) -> None:
    done = run(tools_dir, "--", "--help")
    assert done.returncode == 0
    assert "--slot-save-path" in done.stdout


def test_without_llama_server_it_says_how_to_get_one(
    planned: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "INSTALLED", tmp_path / "lib")
    monkeypatch.setenv("MINICACHE_TOOLS_BIN", str(tmp_path))
    monkeypatch.delenv("MINICACHE_LIB_PATH", raising=False)
    assert main(["serve", str(planned.path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    for words in (str(tmp_path), "pip install .", "bootstrap.py serve", "MINICACHE_TOOLS_BIN"):
        assert words in line


def test_where_llama_server_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "INSTALLED", tmp_path / "installed")
    monkeypatch.setenv("MINICACHE_LIB_PATH", str(tmp_path / "build"))
    monkeypatch.setenv("MINICACHE_TOOLS_BIN", str(tmp_path / "tools"))
    # the later ones come first
    for folder in ("installed", "build", "tools"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / NAME).touch()
        assert find_server() == tmp_path / folder / NAME

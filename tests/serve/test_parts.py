"""The parts of `minicache serve` that need no server: the command line, the output, the address."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path

import pytest

from minicache_cpp import CacheSpec, MiniCache, MiniCacheError
from minicache_cpp.cli import parsed
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.serve import address, command
from minicache_cpp.serve.arguments import DECIDED, refuse_decided, server_arguments
from minicache_cpp.serve.output import Output
from minicache_cpp.serve.process import Server
from support.loaded import Loaded


def asked(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parsed(parser, list(words), command)


def arguments(planned: Loaded, spec: CacheSpec, *words: str) -> dict[str, str]:
    """The options of llama-server with their values, and "" for those that have none."""
    args = asked(str(planned.path), *words)
    given = server_arguments(args, read_gguf(planned.path), spec, 512, 9000)
    after = [*given[1:], "--"]
    pairs = zip(given, after, strict=True)
    return {one: "" if value.startswith("--") else value for one, value in pairs if one.startswith("-")}


def test_the_context_of_all_slots_is_asked_for(planned: Loaded) -> None:
    found = arguments(planned, CacheSpec("q8_0", "q4_0"), "--slots", "3", "--threads", "2", "--save", "dir")
    assert found["--ctx-size"] == "1536"
    assert found["--parallel"] == "3"
    assert "--no-kv-unified" in found
    assert (found["--cache-type-k"], found["--cache-type-v"], found["--flash-attn"]) == ("q8_0", "q4_0", "on")
    assert (found["--threads"], found["--threads-batch"], found["--port"]) == ("2", "2", "9000")
    assert (found["--slot-save-path"], found["--alias"], found["--device"]) == ("dir", "tiny", "none")
    assert "--gpu-layers" not in found
    assert found["--cache-ram"] == "0"  # nobody has counted what it may take


def test_layers_on_a_gpu(planned: Loaded) -> None:
    for given, passed in (("-1", "all"), ("7", "7")):
        found = arguments(planned, CacheSpec("f16", "f16"), "--gpu-layers", given)
        assert found["--gpu-layers"] == passed
        assert "--device" not in found
        assert found["--flash-attn"] == "auto"


def test_what_is_passed_on_takes_the_place_of_the_same_option(planned: Loaded) -> None:
    passed_on = ["--cache_ram", "512", "-a", "mine", "-lv", "4", "--temp", "0"]
    args = asked(str(planned.path), "--threads", "1", "--", *passed_on)
    given = server_arguments(args, read_gguf(planned.path), CacheSpec("f16", "f16"), 512, 1)
    assert given[-len(passed_on) :] == passed_on
    assert not {"--cache-ram", "--alias", "--log-verbosity"} & set(given)
    assert {"--threads", "--fit", "--cors-origins"} < set(given)


def test_no_option_after_the_dashes_decides_what_one_before_them_does() -> None:
    for name, options in DECIDED.items():
        for option in options.split():
            with pytest.raises(MiniCacheError, match=f"{option} after -- is what {name} of"):
                refuse_decided(["--temp", "0", option, "1"])
    refuse_decided(["--temp", "0", "--metrics", "-t", "3"])


def test_dashes_divide_the_command_line() -> None:
    assert asked("m.gguf").passed_on == []
    args = asked("--slots", "2", "--", "--metrics", "--", "x")
    assert (args.model, args.slots, args.passed_on) == (None, 2, ["--metrics", "--", "x"])


def test_the_environment_says_how_the_cache_is_kept(planned: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_MINICACHE", "slerp")
    assert "LLAMA_MINICACHE" not in command.environment(CacheSpec("f16", "f16"))
    plan = planned.path.with_name("tiny.plan.gguf")
    assert command.environment(CacheSpec.parse(str(plan)))["LLAMA_MINICACHE"] == f"plan={plan}"
    spec = CacheSpec.of(MiniCache(type_k="q8_0", type_v="q4_0", window=8))
    text = command.environment(spec)["LLAMA_MINICACHE"]
    assert text == "slerp:start=0.5,t=0.6,retain=0.05,window=8"  # the types are options
    spec = CacheSpec.parse("plain:k=q8_0,v=q4_0,first=2:f16,last=1:q8_0/q5_0")
    assert command.environment(spec)["LLAMA_MINICACHE"] == "plain:first=2:f16,last=1:q8_0/q5_0"
    assert command.environment(CacheSpec.parse("plain:type=q4_0"))["LLAMA_MINICACHE"] == "plain"


def test_output_is_held_back_until_the_server_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(verbose=False)
    lines = ["LLAMA_MINICACHE: merged", "0.00.1 W srv  init: careful", "0.01.0 E cmn  common_init_: broken"]
    for line in [*lines, "W notice: server default port will be changed to 1", "last"]:
        output.take(line)
    assert capsys.readouterr().err == ""
    assert output.reason() == "common_init_: broken"
    output.release()
    assert capsys.readouterr().err.splitlines() == ["[merged]", *lines[1:], "last"]
    assert output.reason() == "last"
    output.take("0.02.0 W srv  more")
    assert capsys.readouterr().err == "0.02.0 W srv  more\n"


def test_a_child_that_ends_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for code, status in (
        ("print('bye'); raise SystemExit(3)", 3),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ):
        output = Output(verbose=False)
        with Server([sys.executable, "-c", code], {}, output) as server:
            assert not server.wait_until(lambda: False)
            assert server.wait() == status
        assert output.reason() == ("bye" if status == 3 else "it said nothing")
    with pytest.raises(MiniCacheError, match="/none cannot be run: No such file"):
        Server(["/none"], {}, Output(verbose=False))


def test_a_port_that_is_free() -> None:
    port = address.free_port("127.0.0.1", 0)
    assert 1024 <= port <= 65535
    assert address.free_port("127.0.0.1", port) == port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(MiniCacheError, match=f"--port {port}"):
        address.free_port("127.0.0.1", port)
    assert not address.answers("127.0.0.1", port)


def test_addresses_as_clients_take_them() -> None:
    assert address.url("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert address.url("::1", 80) == "http://[::1]:80"
    assert address.prefix_of(["--metrics", "--api-prefix", "/a", "--temp", "0"]) == "/a"
    assert address.prefix_of(["--metrics"]) == ""


def test_the_folder_of_saved_slots_is_made(tmp_path: Path) -> None:
    command.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    command.make_folder(None)

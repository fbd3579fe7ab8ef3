"""`minicache serve` as a process, and what it wrote."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai

SECONDS = 60


def command(*arguments: object) -> list[str]:
    """The command on one thread, at a port that is free."""
    options = ["--threads", "1", "--port", "0"]
    words = list(map(str, arguments))
    end = words.index("--") if "--" in words else len(words)
    return [sys.executable, "-m", "minicache_cpp.serve", *words[:end], *options, *words[end:]]


def environment(tools: Path | None, **more: str) -> dict[str, str]:
    """This process's, with llama-server from this folder, and none of llama.cpp's own variables."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    clean.pop("MINICACHE_TOOLS_BIN", None)
    return clean | ({"MINICACHE_TOOLS_BIN": str(tools)} if tools else {}) | more


def run(tools: Path | None, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=SECONDS,
        env=environment(tools, **more),
        check=False,
    )


class Served:
    """A command that serves a model."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: queue.Queue[str] = queue.Queue()
        self.notes: list[str] = []  # what it wrote to stderr
        assert process.stdout and process.stderr
        self.readers = [
            threading.Thread(target=self._read, args=(process.stdout, self.lines.put), daemon=True),
            threading.Thread(target=self._read, args=(process.stderr, self.notes.append), daemon=True),
        ]
        for reader in self.readers:
            reader.start()
        self.found: dict[str, Any] = {}
        self.address = ""

    @staticmethod
    def _read(stream: Any, take: Any) -> None:
        for line in stream:
            take(line)
        take("")

    def wait_until_ready(self) -> None:
        """Waits for the JSON object, or for the line with the address."""
        text = ""
        while not (text.startswith("serving ") or text.rstrip().endswith("}")):
            line = self.lines.get(timeout=SECONDS)
            assert line, "".join(self.notes)
            text += line
        self.found = json.loads(text) if text.startswith("{") else {}
        address = re.search(r"http://[^\s\"/,]+", text)
        assert address, text
        self.address = address[0]

    @property
    def said(self) -> str:
        return "".join(self.notes)

    def client(self, **options: Any) -> openai.OpenAI:
        values = {"base_url": f"{self.address}/v1", "api_key": "none", "max_retries": 0, "timeout": SECONDS}
        return openai.OpenAI(**(values | options))

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=SECONDS) as answer:
            return str(answer.read().decode())

    def post(self, path: str, **body: object) -> tuple[int, Any]:
        """The status and the object of the answer."""
        request = urllib.request.Request(
            f"{self.address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Sends a signal, and returns the exit status once everything that was written has been read."""
        self.process.send_signal(number)
        status = self.process.wait(SECONDS)
        for reader in self.readers:
            reader.join(SECONDS)
        return status


@contextmanager
def started(tools: Path, *arguments: object, **more: str) -> Iterator[Served]:
    """The command while it starts; it is stopped at the end."""
    # not ignored, as it is in a shell's background jobs, whose children inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment(tools, **more),
    )
    signal.signal(signal.SIGINT, before)
    served = Served(process)
    try:
        yield served
    finally:
        if process.poll() is None:
            served.stop(signal.SIGTERM)


@contextmanager
def serving(tools: Path, *arguments: object, **more: str) -> Iterator[Served]:
    """The command once it serves."""
    with started(tools, *arguments, **more) as served:
        served.wait_until_ready()
        yield served

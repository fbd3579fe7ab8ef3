"""The process that asks a server one thing after the other, as clients do: they stream, leave, save and restore."""

from __future__ import annotations

import http.client
import json
import os
import random
import tempfile
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from campaigns.children import say
from campaigns.process_use import use_of
from minicache_cpp import MiniCacheError
from oracle.model import Config
from support import tiny_models
from support.loaded import Loaded
from support.plans import ALL_PAIRS, coded
from support.servers import Served, serving

WORDS = "The cat sat on the mat, and the dog lay beside it. "
TOOLS = "MINICACHE_TOOLS_BIN"
SETTLING = 1.0  # seconds


def main(model: Path | None, seed: int, n_steps: int) -> None:
    """Sends so many requests, and writes a line of JSON before and after each."""
    if not os.environ.get(TOOLS):
        raise MiniCacheError(f"a server is needed: {TOOLS} names the folder of llama-server")
    tools = Path(os.environ[TOOLS]).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = model or planned_model(folder)
        options = ["--ctx", 512, "--slots", 2, "--save", folder / "slots", "--json", "--", "--context-shift"]
        with serving(tools, path, *options) as served:
            process = server_of(served.process.pid)
            idle = use_of(process)
            for number in range(seed, seed + n_steps):
                rng = random.Random(f"request {number}")
                what = rng.choice(["answer", "stream", "leave", "save", "restore", "shift"])
                say({"begins": number, "where": what})
                wrong = request(served, what, rng)
                say({"uses": settled(process, idle), "did": {what: 1}, "wrong": wrong})
    say({"over": True})


def planned_model(folder: Path) -> Path:
    loaded = Loaded(tiny_models.random_model(), folder / "tiny.gguf")
    coded(loaded, Config(groups=ALL_PAIRS), folder / "tiny.plan.gguf")
    return loaded.path


def server_of(process: int) -> int:
    """The process of llama-server, which `minicache serve` has started."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
    return int(found[0])


def settled(process: int, idle: Mapping[str, float]) -> dict[str, float]:
    """What the server uses after a request: it closes the connection a moment after the client has its answer.

    If more files are open than when it was idle, it has a second to close them.
    """
    end = time.monotonic() + SETTLING
    while (found := use_of(process))["open files"] > idle["open files"] and time.monotonic() < end:
        time.sleep(0.01)
    return found


def request(served: Served, what: str, rng: random.Random) -> str:
    """Sends a request; returns what is wrong with the answer, "" if nothing is."""
    body: dict[str, Any] = {"prompt": WORDS * rng.randint(1, 4), "n_predict": 8, "id_slot": rng.randrange(2)}
    body["ignore_eos"] = True
    if what in ("stream", "leave"):
        stream(served, {**body, "stream": True, "n_predict": 40}, 3 if what == "leave" else 10**6)
        return ""
    path = "/completion"
    if what in ("save", "restore"):
        path, body = f"/slots/{body['id_slot']}?action={what}", {"filename": "one.bin"}
    elif what == "shift":
        body["n_predict"] = 600
    status, answer = served.post(path, **body)
    # nothing has been saved yet
    allowed = (200, 400) if what == "restore" else (200,)
    return "" if status in allowed else f"{what}: status {status}, {answer}"


def stream(served: Served, body: dict[str, Any], n_parts: int) -> None:
    """Reads so many parts of a stream, and is gone."""
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(served.address).netloc, timeout=60)
    try:
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        while n_parts and answer.readline():
            n_parts -= 1
    finally:
        connection.close()

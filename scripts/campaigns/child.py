"""The process in which files are read. It says what it is about to do, so that its parent knows what has ended it."""

from __future__ import annotations

import ctypes
import random
import resource
import tempfile
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from campaigns.children import say
from campaigns.readers import REFUSED, ModelReader, PlanReader, Reader, StateReader
from campaigns.text_readers import ChatReader, SettingsReader
from minicache_cpp import MiniCacheError
from minicache_cpp.native.binding import llama_h
from support.contexts import quiet

READERS: dict[str, Callable[[Path], Reader]] = {
    "plan": PlanReader,
    "model": ModelReader,
    "state": partial(StateReader, whole=True),
    "sequence": partial(StateReader, whole=False),
    "chat": ChatReader,
    "settings": SettingsReader,
}
# above what the process has when it begins: our readers of states may ask for 1 GiB and the cache twice
MEMORY_BYTES = 2 << 30


def main(name: str, seed: int, n_steps: int) -> None:
    """Reads so many changed files, and writes a line of JSON before and after each."""
    llama_h.llama_log_set(quiet, ctypes.c_void_p(0))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        reader = READERS[name](Path(folder))
        limit_memory()
        for number in range(seed, seed + n_steps):
            say({"begins": number})
            say({"ends": number, **once(reader, random.Random(f"{name} {number}"))})
        say({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def once(reader: Reader, rng: random.Random) -> dict[str, str]:
    data = reader.mutate(rng)
    try:
        return {"result": reader.read(data)}
    except MiniCacheError as error:
        if "\n" in str(error) or not str(error):
            return {"wrong": f"a refusal that is not one line: {str(error)[:200]!r}"}
        return {"result": REFUSED}
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(one.filename).name}:{one.lineno}" for one in reversed(frames))
        return {"wrong": f"{type(error).__name__}: {str(error)[:200]} ({where})"}

"""The library that makes allocations fail: compiled for a campaign, preloaded into a process, and told what to do.

`new` inside libstdc++, as where a std::string grows, is counted by the address of libstdc++ and not of its caller, so
libstdc++ is among the libraries whose allocations count.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from minicache_cpp import MiniCacheError

SOURCE = Path(__file__).with_name("failing_allocations.cpp")
COUNTED = ("libllama.", "libggml", "libstdc++.")


def compiled(folder: Path) -> Path:
    """Compiles the library. Raises MiniCacheError where there is no compiler for it."""
    library = folder / "failing_allocations.so"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    command = [*compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise MiniCacheError(f"{SOURCE.name} cannot be compiled: {reason.strip().splitlines()[0]}") from None
    return library


class Allocations:
    """The library in this process, into which it has been preloaded."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL(None)
        self.lib.failing_allocations_of.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        self.lib.failing_allocations_arm.argtypes = [ctypes.c_long, ctypes.c_bool]
        for name in ("disarm", "failed", "buffer"):
            getattr(self.lib, f"failing_allocations_{name}").restype = ctypes.c_long
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            addresses, permissions, *_, path = line.split(maxsplit=5)
            if "x" in permissions and Path(path).name.startswith(COUNTED):
                begin, end = (int(one, 16) for one in addresses.split("-"))
                self.lib.failing_allocations_of(begin, end)

    def during(
        self, run: Callable[[], object], at: int, all_after: bool
    ) -> tuple[Exception | None, int, int]:
        """Runs something while allocation `at` fails, and those after it if `all_after`; -1 is none.

        Returns what it raised, how many allocations there were, and how many of them failed.
        """
        raised: Exception | None = None
        self.lib.failing_allocations_arm(at, all_after)
        try:
            run()
        except Exception as error:
            raised = error
        finally:
            counted = int(self.lib.failing_allocations_disarm())
        return raised, counted, int(self.lib.failing_allocations_failed())

    def buffers(self) -> list[int]:
        """The numbers of those allocations that were buffers, when nothing has failed."""
        found = itertools.takewhile(lambda at: at >= 0, map(self.lib.failing_allocations_buffer, range(64)))
        return list(found)

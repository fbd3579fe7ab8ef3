"""Commands in processes of their own that need not start anew: copies of this process, which has loaded everything."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from campaigns.children import why_ended

LOOK = 0.002  # seconds between two looks at whether it has ended


@dataclass(frozen=True)
class Ended:
    """How a process has ended: its exit code, or the number of a signal, negative; and what it wrote."""

    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"{why_ended(self.code)}: {' | '.join(self.err.strip().splitlines()[-3:])[:400]}"


def forked(
    action: Callable[[], int],
    text: str = "",
    seconds: float = 60.0,
    signal_after: tuple[int, float] | None = None,
    look: Callable[[], None] = lambda: None,
) -> Ended:
    """Runs an action in a copy of this process, which gets the text to read, and waits for its end.

    The action returns the exit code. `look` is called every now and then. The process gets a signal after so many
    seconds, if one is given, and after `seconds` it counts as hanging, and its code is SIGALRM's.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(text.encode())
        given.seek(0)
        sys.stdout.flush()
        begun = time.monotonic()
        process = os.fork()
        if process == 0:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            _run(action)
        code = _wait(process, begun, seconds, signal_after, look)
        written = []
        for file in (out, err):
            file.seek(0)
            written.append(file.read().decode(errors="replace"))
    return Ended(code, written[0], written[1], time.monotonic() - begun)


def _run(action: Callable[[], int]) -> None:
    """Ends this process with the action's exit code, as an interpreter would."""
    code = 1
    # which background jobs of a shell ignore
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = action()
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(
    process: int,
    begun: float,
    seconds: float,
    signal_after: tuple[int, float] | None,
    look: Callable[[], None],
) -> int:
    while True:
        look()
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - begun
        if signal_after is not None and passed >= signal_after[1]:
            os.kill(process, signal_after[0])
            signal_after = None
        if passed > seconds:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return -signal.SIGALRM
        time.sleep(LOOK)

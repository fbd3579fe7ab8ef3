"""llama-server as a child process: its output, the signals that end it, and how it ended."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, TracebackType

from ..errors import MiniCacheError
from .output import Output

# How long llama-server has to stop by itself. It finishes its batch first; while a client still receives an answer it
# does not stop at all, and is killed.
STOP_SECONDS = 5.0
POLL_SECONDS = 0.1
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Server:
    """A running llama-server. It is stopped at the end of the block, or when this process gets a signal to stop."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], output: Output) -> None:
        self.output = output
        self.stopped_by: list[int] = []  # the signals that were passed on
        self.was_ready = False
        self.process: subprocess.Popen[bytes] | None = None
        # an ignored signal stays ignored, such as SIGHUP under nohup
        self.handlers = {
            number: signal.signal(number, self._stop)
            for number in SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            # a session of its own: Ctrl-C at a terminal reaches this process alone, and the server once, from here
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            self._give_back_signals()
            raise MiniCacheError(f"{command[0]} cannot be run: {error.strerror or error}") from None
        if self.stopped_by:  # while it started
            self.process.terminate()
        self.reader = threading.Thread(target=output.read, args=(self.process.stdout,), daemon=True)
        self.reader.start()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._give_back_signals()

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Waits until ready() says so; False where the server ended before that."""
        assert self.process is not None
        while self.process.poll() is None:
            if not self.stopped_by and ready():
                self.was_ready = True
                return True
            time.sleep(POLL_SECONDS)
        return False

    def wait(self) -> int:
        """Waits for the end, and returns the exit status: 0 where it was asked once to stop, after it was ready.

        A status of 128 and the signal's number is for another end by a signal.
        """
        assert self.process is not None
        status = self.process.wait()
        self.reader.join(POLL_SECONDS)
        if self.stopped_by:
            return 0 if self.was_ready and len(self.stopped_by) == 1 else 128 + self.stopped_by[0]
        return status if status >= 0 else 128 - status

    def _stop(self, number: int, _: FrameType | None) -> None:
        self.stopped_by.append(number)
        if self.process is None:
            return
        # SIGTERM in place of SIGINT, which a server may have inherited as ignored; a second one ends it at once
        self.process.terminate()
        if len(self.stopped_by) == 1:
            timer = threading.Timer(STOP_SECONDS, self.process.kill)
            timer.daemon = True
            timer.start()

    def _give_back_signals(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

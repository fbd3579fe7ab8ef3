"""The process in which commands meet full disks, are killed, or are interrupted by Ctrl-C."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from campaigns.children import say
from campaigns.commands import DISTURBED, Command, Workplace, files_below
from campaigns.forked import Ended, forked
from campaigns.small_disks import PAGE, Disk, LimitedFiles, MountedDisk, empty
from minicache_cpp.cli import INTERRUPTED

Result = dict[str, str]
SOON = 2.0  # seconds in which a busy machine ends an interrupted process


def main(kind: str, names: Sequence[str], seed: int, n_steps: int, mount: bool) -> None:
    """Disturbs each command so many times, and writes a line of JSON before and after each."""
    # modules of C, while they are imported, can turn Ctrl-C into errors of other kinds
    import ssl  # noqa: F401

    import gguf  # noqa: F401

    from minicache_cpp.reading import text_model  # noqa: F401

    with tempfile.TemporaryDirectory() as kept, tempfile.TemporaryDirectory() as folder:
        place = Workplace(Path(kept))
        disk: Disk = (MountedDisk if mount else LimitedFiles)(Path(folder))
        disturbances = [DISTURBANCES[kind](name, DISTURBED[name](place), disk) for name in names]
        say({"ready": [one.needs for one in disturbances]})
        for number in range(seed, seed + n_steps):
            for one in disturbances:
                say({"begins": number, "where": f"{kind}: {one.name}"})
                say({"ends": number, "name": f"{kind}: {one.name}", **one.once(number)})
        say({"over": True})


class Disturbance:
    """A command in a folder that it finds the same each time."""

    def __init__(self, name: str, command: Command, disk: Disk) -> None:
        self.name, self.command, self.disk = name, command, disk
        self.needs = ""

    def prepare(self) -> dict[Path, bytes]:
        """Returns the files that the command finds."""
        self.disk.has_room()
        empty(self.disk.path)
        self.command.prepare(self.disk.path)
        return files_below(self.disk.path)

    def run(self, signal_after: tuple[int, float] | None = None) -> Ended:
        folder, text = self.disk.path, self.command.text

        def action() -> int:
            self.disk.limit()
            return self.command.run(folder)

        return forked(action, text, signal_after=signal_after, look=self.look)

    def look(self) -> None: ...

    def wrong_result(self, before: dict[Path, bytes], has_done: bool) -> str:
        """What is wrong with the file that the command makes; where it has failed, the old one must be there."""
        result, path = self.command.result, self.disk.path / self.command.result
        if has_done and not self.command.is_whole(path):
            return "done, and the result is damaged"
        if not has_done and result in before and (not path.exists() or path.read_bytes() != before[result]):
            return "failed, and the old file is not what it was"
        return ""

    def wrong_again(self) -> str:
        """What is wrong when the command is run again with room and time, an hour later."""
        for one in self.disk.path.rglob("*.part"):
            os.utime(one, (0, 0))
        self.disk.has_room()
        ended = self.run()
        if not self.command.has_done(ended) or not self.command.is_whole(
            self.disk.path / self.command.result
        ):
            return f"run again, it does not go on: {ended}"
        return ""

    def changed(self, before: dict[Path, bytes], after: dict[Path, bytes]) -> list[str]:
        """Old files, but for the result, that are not what they were."""
        others = set(before) - {self.command.result}
        return [str(one) for one in others if after.get(one) != before[one]]


class FullDisk(Disturbance):
    def __init__(self, name: str, command: Command, disk: Disk) -> None:
        super().__init__(name, command, disk)
        self.prepare()
        at_first, self.most = disk.used(), 0
        ended = self.run()
        if not command.has_done(ended):
            raise RuntimeError(f"{name} cannot be done with room either: {ended}")
        result = disk.path / command.result
        self.peak = max(self.most - at_first, result.stat().st_size if result.exists() else PAGE)
        self.needs = f"{name}: {self.peak} bytes"

    def look(self) -> None:
        self.most = max(getattr(self, "most", 0), self.disk.used())

    def once(self, number: int) -> Result:
        rng = random.Random(f"{self.name} {number}")
        before = self.prepare()
        if rng.random() < 0.2:
            left = f"{(n_files := rng.randrange(12))} files"
            self.disk.leave_files(n_files)
        else:
            left = f"{(n_bytes := rng.randrange(self.peak // PAGE + 1) * PAGE)} bytes"
            self.disk.leave(n_bytes)
        ended = self.run()
        has_done = self.command.has_done(ended)
        after = files_below(self.disk.path)
        wrong = self.wrong_words(ended, has_done) or self.wrong_result(before, has_done)
        if not wrong:
            wrong = self.wrong_files(before, after, has_done)
        if wrong:
            return {"wrong": f"with room for {left}: {wrong} ({ended})"}
        if wrong := self.wrong_again():
            return {"wrong": f"with room for {left}: {wrong}"}
        return {"result": "done" if has_done else "refused"}

    def wrong_words(self, ended: Ended, has_done: bool) -> str:
        """A command that has failed says so once, in one line."""
        if "Traceback" in ended.err:
            return "a traceback"
        if has_done:
            return ""
        if ended.code not in (0, 2):
            return "it ends otherwise than by refusing"
        said = [line for line in ended.err.splitlines() if line.startswith(("minicache: ", "["))]
        reasons = ("space", "large", "full", "cannot be written", "cannot write", "free")
        if not any(any(word in line for word in reasons) for line in said):
            return "it does not say that the disk is full"
        return ""

    def wrong_files(self, before: dict[Path, bytes], after: dict[Path, bytes], has_done: bool) -> str:
        if changed := self.changed(before, after):
            return f"other files have changed: {', '.join(changed)}"
        new = set(after) - set(before) - {self.command.result}
        left = [str(one) for one in new if not self.command.may_stay(one, self.disk.is_full)]
        return f"files are left: {', '.join(sorted(left)[:4])}" if left else ""


class Signalled(Disturbance):
    """A command that gets a signal at a random time."""

    signal: int
    called: str

    def __init__(self, name: str, command: Command, disk: Disk) -> None:
        super().__init__(name, command, disk)
        self.prepare()
        ended = self.run()
        if not command.has_done(ended):
            raise RuntimeError(f"{name} cannot be done undisturbed either: {ended}")
        self.seconds = ended.seconds
        self.needs = f"{name}: {self.seconds:.1f} s"

    def once(self, number: int) -> Result:
        rng = random.Random(f"{self.name} {number}")
        before = self.prepare()
        at = rng.uniform(0, 1.05 * self.seconds)
        ended = self.run((self.signal, at))
        after = files_below(self.disk.path)
        if self.is_damaged(before, after):
            wrong = "the file is neither the old one nor a whole new one"
        elif changed := self.changed(before, after):
            wrong = f"other files have changed: {', '.join(changed)}"
        else:
            wrong = self.wrong_end(ended, at) or self.wrong_again() or self.left(before)
        if wrong:
            return {"wrong": f"{self.called} after {at:.3f} s: {wrong} ({ended})"}
        return {"result": "done before" if self.has_done(ended) else self.called}

    def has_done(self, ended: Ended) -> bool:
        """Whether it had ended before the signal."""
        raise NotImplementedError

    def wrong_end(self, ended: Ended, at: float) -> str:
        """What is wrong with how it has ended, with a signal after so many seconds."""
        raise NotImplementedError

    def is_damaged(self, before: dict[Path, bytes], after: dict[Path, bytes]) -> bool:
        result = self.command.result
        is_old = after.get(result) == before.get(result)
        return not is_old and not self.command.is_whole(self.disk.path / result)

    def left(self, before: dict[Path, bytes]) -> str:
        new = set(files_below(self.disk.path)) - set(before) - {self.command.result}
        left = [str(one) for one in new if not self.command.stays_after_kill(one)]
        return f"files are left when it has been run again: {', '.join(sorted(left)[:4])}" if left else ""


class Kill(Signalled):
    signal, called = signal.SIGKILL, "killed"

    def has_done(self, ended: Ended) -> bool:
        return ended.code >= 0

    def wrong_end(self, ended: Ended, at: float) -> str:
        had_failed = ended.code > 0 or "Traceback" in ended.err
        return "it had failed before it was killed" if had_failed else ""


class Interrupt(Signalled):
    """Ctrl-C: the command ends soon, and says nothing of its insides."""

    signal, called = signal.SIGINT, "interrupted"

    def has_done(self, ended: Ended) -> bool:
        return self.command.has_done(ended)

    def wrong_end(self, ended: Ended, at: float) -> str:
        if ended.code not in (0, INTERRUPTED):
            return "it ends otherwise than by being interrupted"
        if "Traceback" in ended.err or "ignored" in ended.err:
            return "it shows where it was interrupted"
        if not self.has_done(ended) and ended.seconds > at + SOON + 0.3 * self.seconds:
            return f"it goes on for {ended.seconds - at:.1f} s"
        return ""


DISTURBANCES: dict[str, Callable[[str, Command, Disk], Signalled | FullDisk]] = {
    "disk": FullDisk,
    "kill": Kill,
    "interrupt": Interrupt,
}

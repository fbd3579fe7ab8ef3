"""Commands that write files, what they find beforehand, and what must hold when they have been disturbed."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from campaigns.forked import Ended, forked
from campaigns.small_disks import PAGE
from minicache_cpp import MiniCacheError, cli
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.chat.file import read_chat
from minicache_cpp.evaluate import evaluation
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.models import table
from support import tiny_models
from support.calibrations import write_sentences
from support.model_packages import Index

PARTS = [bytes(range(256)) * 400, b"the second part " * 9000]


class Workplace:
    """What nothing disturbs: a model, a text, an index of wheels, and files that commands have made before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_models.random_model(n_layer=2).write(folder / "model.gguf")
        self.text = write_sentences(folder / "text.txt")
        self.index = Index(folder / "wheels", folder / "data")
        self.index.wheels.mkdir()
        self.index.data.mkdir()
        self.index.add("tiny", PARTS)

    @functools.cached_property
    def old_plan(self) -> Path:
        path = self.folder / "old.plan.gguf"
        return self.made(path, calibration(self, path, "--ratio", "4"))

    @functools.cached_property
    def old_chat(self) -> Path:
        path = self.folder / "old.chat"
        return self.made(path, chat(self), f"hello\n/save {path}\n/quit\n")

    def made(self, path: Path, arguments: list[str], text: str = "") -> Path:
        ended = forked(lambda: command_line(self.folder, arguments), text)
        if ended.code or not path.exists():
            raise MiniCacheError(f"the campaign cannot begin: {ended}")
        return path


def calibration(place: Workplace, output: Path | None, *more: str) -> list[str]:
    arguments = [
        "calibrate",
        str(place.model),
        "--text",
        str(place.text),
        "--tokens",
        "256",
        "--window",
        "16",
        "--threads",
        "1",
    ]
    return [*arguments, *more, *(["-o", str(output)] if output else [])]


def chat(place: Workplace) -> list[str]:
    options = ["--config", "slerp:start=0.5", "--ctx", "256", "--threads", "1", "--temp", "0"]
    return ["chat", str(place.model), *options, "--max-tokens", "4"]


def command_line(folder: Path, arguments: list[str]) -> int:
    """`minicache` with these arguments, in a process that keeps all its files in a folder."""
    for name, variable in (("cache", "MINICACHE_CACHE_DIR"), ("tmp", "TMPDIR")):
        os.environ[variable] = str(folder / name)
    tempfile.tempdir = None
    (folder / "tmp").mkdir(exist_ok=True)
    return cli.main(arguments)


class Command:
    """A command that makes `result` of `old`; both are below the folder that it is disturbed in."""

    result = Path("out/result")
    text = ""

    def __init__(self, place: Workplace) -> None:
        self.place = place

    def prepare(self, folder: Path) -> None:
        """Puts what the command finds there into an empty folder."""
        for name in ("cache", "tmp", "out"):
            (folder / name).mkdir()
        if old := self.old():
            (folder / self.result).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(old, folder / self.result)

    def old(self) -> Path | None:
        """A file that was made before and that the command replaces."""
        return None

    def arguments(self, folder: Path) -> list[str]:
        raise NotImplementedError

    def run(self, folder: Path) -> int:
        return command_line(folder, self.arguments(folder))

    def has_done(self, ended: Ended) -> bool:
        return ended.code == 0

    def is_whole(self, path: Path) -> bool:
        """Whether the result can be read and is as it has to be."""
        return path.exists()

    def may_stay(self, path: Path, is_full: bool) -> bool:
        """Whether a file of this name, relative to the folder, may be left by a command that has failed."""
        return False

    def stays_after_kill(self, path: Path) -> bool:
        """The same for a command that was killed, when it has been run again."""
        return path.suffix == ".lock"


class Calibrate(Command):
    """A calibration in the cache folder, whose plan goes elsewhere."""

    result = Path("out/plan.gguf")

    def old(self) -> Path | None:
        return self.place.old_plan

    def arguments(self, folder: Path) -> list[str]:
        return calibration(self.place, folder / self.result)

    def may_stay(self, path: Path, is_full: bool) -> bool:
        # where the disk has room, the next calibration goes on from there
        return not is_full and path.parts[:2] == ("cache", "calibrations")

    def is_whole(self, path: Path) -> bool:
        try:
            return PlanFile.open(path).plan.fingerprint == fingerprint(read_gguf(self.place.model))
        except MiniCacheError:
            return False


class WritePlan(Calibrate):
    """The same with a cache folder that has room, so that the disk is full where the plan is written."""

    def run(self, folder: Path) -> int:
        arguments = self.arguments(folder)
        return command_line(self.place.folder, arguments)


class Save(Command):
    """`/save` in a chat, which goes on."""

    result = Path("out/chat")

    def old(self) -> Path | None:
        return self.place.old_chat

    def arguments(self, folder: Path) -> list[str]:
        return chat(self.place)

    def prepare(self, folder: Path) -> None:
        super().prepare(folder)
        self.text = f"hi\n/save {folder / self.result}\n/quit\n"

    def has_done(self, ended: Ended) -> bool:
        return ended.code == 0 and "[saved " in ended.err

    def is_whole(self, path: Path) -> bool:
        try:
            return bool(read_chat(path)[0]["messages"])
        except MiniCacheError:
            return False


class CarelessSave(Save):
    """What a campaign must notice: a program that writes over the old file."""

    def run(self, folder: Path) -> int:
        start, line, state = self.place.old_chat.read_bytes().split(b"\n", 2)
        # longer than the old one, and so slow that it can be killed meanwhile
        data = b"\n".join([start, line + b" " * 8 * PAGE, state])
        with (folder / self.result).open("wb", buffering=0) as file:
            for at in range(0, len(data), PAGE):
                file.write(data[at : at + PAGE])
                time.sleep(0.01)
        return 0

    def has_done(self, ended: Ended) -> bool:
        return ended.code == 0


class Evaluate(Command):
    """The reference in a temporary file, on a disk that fills up after it has been found large enough."""

    def arguments(self, folder: Path) -> list[str]:
        options = ["--ctx", "128", "--chunks", "1", "--threads", "1", "--config", "q8_0"]
        return ["evaluate", str(self.place.model), "--text", str(self.place.text), *options]

    def run(self, folder: Path) -> int:
        evaluation.check_room = lambda *_: None
        return super().run(folder)

    def is_whole(self, path: Path) -> bool:
        return True


class Fetch(Command):
    result = Path("cache/models/tiny.gguf")

    def old(self) -> Path | None:
        return None

    def arguments(self, folder: Path) -> list[str]:
        return ["models", "get", "tiny"]

    def run(self, folder: Path) -> int:
        table.data_folder = lambda: self.place.index.data
        os.environ.update(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1")
        os.environ["PIP_FIND_LINKS"] = str(self.place.index.wheels)
        return super().run(folder)

    def is_whole(self, path: Path) -> bool:
        return path.exists() and path.read_bytes() == b"".join(PARTS)

    def may_stay(self, path: Path, is_full: bool) -> bool:
        # the next fetch begins with the wheels that are whole
        wheel = self.place.index.wheels / path.name
        return path.suffix == ".whl" and wheel.exists()


# A calibration begins in the background, a chat is saved, and the interpreter ends.
SHUTDOWN = """
import sys, time, warnings
from pathlib import Path
from minicache_cpp import Conversation, Llama, save_chat
warnings.simplefilter("ignore")
llm = Llama(sys.argv[1], minicache="auto", calibrate="background", n_ctx=256, n_threads=1, verbose=False)
talk = Conversation(llm)
talk.ask("hi", 4)
time.sleep(1.5)
save_chat(Path(sys.argv[2]), talk)
"""


class Shutdown(Command):
    """The end of a program that calibrates in the background, and has saved a chat before."""

    result = Path("out/chat")

    def old(self) -> Path | None:
        return self.place.old_chat

    def run(self, folder: Path) -> int:
        os.environ["MINICACHE_CACHE_DIR"] = str(folder / "cache")
        arguments = [str(self.place.model), str(folder / self.result)]
        os.execv(sys.executable, [sys.executable, "-c", SHUTDOWN, *arguments])

    def is_whole(self, path: Path) -> bool:
        try:
            return bool(read_chat(path)[0]["messages"])
        except MiniCacheError:
            return False

    def stays_after_kill(self, path: Path) -> bool:
        # the calibration goes on another time
        return path.parts[:2] in (("cache", "calibrations"), ("cache", "plans"))


DISTURBED: dict[str, Callable[[Workplace], Command]] = {
    "calibrate": Calibrate,
    "plan": WritePlan,
    "save": Save,
    "evaluate": Evaluate,
    "fetch": Fetch,
    "shutdown": Shutdown,
    "careless": CarelessSave,
}
ON_FULL_DISKS = ("calibrate", "plan", "save", "evaluate", "fetch")
KILLED = ("calibrate", "save", "fetch", "shutdown")
# in a chat, Ctrl-C ends an answer only
INTERRUPTED = ("calibrate", "evaluate", "fetch")
USUAL = {"disk": ON_FULL_DISKS, "kill": KILLED, "interrupt": INTERRUPTED}


def files_below(folder: Path) -> dict[Path, bytes]:
    """The files of a folder, by their path in it."""
    return {one.relative_to(folder): one.read_bytes() for one in folder.rglob("*") if one.is_file()}

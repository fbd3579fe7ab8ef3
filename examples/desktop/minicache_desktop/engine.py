"""The thread that owns the model.

Whatever touches the model runs in this thread, one call after the other. The window calls the methods of Engine, which
return at once, and hears of the results by signals.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PySide6.QtCore import QObject, QThread, QTimer, Signal, Slot

from minicache_cpp import (
    Conversation,
    Llama,
    MiniCacheError,
    MiniCacheWarning,
    Sampling,
    load_chat,
    save_chat,
)

LOOK = 500  # milliseconds between two looks at whether a calibration has ended


@dataclass(frozen=True)
class Wanted:
    """What to load. The fields are those of Settings."""

    model: str
    cache: str
    n_ctx: int
    n_threads: int


@dataclass(frozen=True)
class Loaded:
    """What was loaded."""

    wanted: Wanted
    name: str
    # what the cache is, as people call it
    cache: str


@dataclass(frozen=True)
class Memory:
    """What the KV cache takes, and how much of the context is in use."""

    bytes: int
    bytes_f16: int
    n_tokens: int
    n_ctx: int


@dataclass(frozen=True)
class Reply:
    """The end of an answer."""

    text: str
    n_tokens: int
    tokens_per_second: float
    # "stop", "length", "interrupted" or "full"
    finish: str
    # tokens that were dropped from the context to make room
    dropped: int


class Engine(QObject):
    """The model and the conversation, in a thread of their own."""

    loading = Signal(str)
    loaded = Signal(object)  # Loaded, or None where there is no model any more
    messages = Signal(list, str)  # after a new or an opened chat: its messages, and its system message
    text = Signal(str)  # a further piece of the answer
    answered = Signal(object)  # Reply
    unanswered = Signal(str)  # why a question has no answer; the chat is as it was before
    memory = Signal(object)  # Memory
    calibrating = Signal(float, str)  # how far a calibration in the background is, and its stage
    calibrated = Signal(str)  # it has ended: "" with a plan, or the reason why there is none
    note = Signal(str)
    failed = Signal(str)  # a sentence; something else was not possible
    closed = Signal()

    _queued = Signal(object)

    def __init__(self) -> None:
        super().__init__()
        self._llm: Llama | None = None
        self._conversation: Conversation | None = None
        # what is loaded
        self._wanted: Wanted | None = None
        self._system, self._sampling = "", Sampling()
        self._stopped, self._uncalibrated = threading.Event(), threading.Event()
        self._look = QTimer(self, interval=LOOK)
        self._look.timeout.connect(self._look_at_calibration)
        # emitted in the window's thread, received in this one
        self._queued.connect(self._run)
        self._thread = QThread()
        self._thread.setObjectName("engine")
        self.moveToThread(self._thread)
        self._thread.finished.connect(self.closed)
        self._thread.start()

    #
    # for the window; nothing here waits
    #

    def load(self, wanted: Wanted) -> None:
        """Loads a model in place of the one before. The conversation goes on with it."""
        self._queued.emit(lambda: self._load(wanted))

    def ask(self, question: str, max_tokens: int) -> None:
        self._stopped.clear()
        self._queued.emit(lambda: self._ask(question, max_tokens))

    def stop(self) -> None:
        """Ends an answer, also while its question is read. A question that was not read whole is taken back."""
        self._stopped.set()
        if self._llm is not None:
            self._llm.abort()

    def new_chat(self) -> None:
        self._queued.emit(self._new_chat)

    def save(self, path: Path) -> None:
        self._queued.emit(lambda: self._save(path))

    def open(self, path: Path) -> None:
        self._queued.emit(lambda: self._open(path))

    def configure(self, system: str, sampling: Sampling) -> None:
        """Sets the system message, for the next new chat, and the sampling, from the next answer on."""
        self._queued.emit(lambda: self._configure(system, sampling))

    def cancel_calibration(self) -> None:
        self._uncalibrated.set()

    def close(self) -> None:
        """Ends what is under way and frees the model; `closed` follows."""
        self._uncalibrated.set()
        self.stop()
        self._queued.emit(self._close)

    def wait(self, milliseconds: int) -> bool:
        """Waits, after close(), for the end of the thread."""
        return self._thread.wait(milliseconds)

    @property
    def n_tokens(self) -> int:
        """How many tokens are in the context at this moment."""
        llm = self._llm
        return llm.n_tokens if llm is not None else 0

    #
    # in the thread
    #

    @Slot(object)
    def _run(self, job: Callable[[], None]) -> None:
        """Does one thing; whatever goes wrong becomes a sentence."""
        try:
            job()
        except Exception as error:  # llama_cpp raises many kinds, and none may end the app
            logging.getLogger(__name__).debug("in the engine", exc_info=True)
            self.failed.emit(sentence(error))

    def _load(self, wanted: Wanted) -> None:
        """Loads a model; if that is not possible, the one before is loaded again."""
        before, self._wanted = self._wanted, None
        self._free()
        try:
            self._load_into_empty(wanted)
        except Exception:
            if before is not None:
                self._load_into_empty(before)
            raise

    def _load_into_empty(self, wanted: Wanted) -> None:
        before = self._conversation
        self.loading.emit(wanted.model)
        self._uncalibrated.clear()
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", MiniCacheWarning)
            llm = Llama(
                wanted.model,
                n_ctx=wanted.n_ctx,
                n_threads=wanted.n_threads or None,
                n_threads_batch=wanted.n_threads or None,
                minicache=wanted.cache,
                calibrate="background" if wanted.cache == "auto" else None,
                on_progress=self._calibration_step,
                verbose=False,
            )
        self._llm = llm
        self._conversation = self._empty(llm)
        if before is not None:
            # they are read again with the next question
            self._conversation.messages += [one for one in before.messages if one["role"] != "system"]
        self._wanted = wanted
        self.loaded.emit(Loaded(wanted, Path(llm.model_path).stem, cache_name(llm)))
        self._tell_memory()
        texts = [sentence(one.message) for one in notes if issubclass(one.category, MiniCacheWarning)]
        if self._conversation.template.is_plain:
            texts.append("This model has no chat template, and was probably not trained to chat.")
        if texts:
            self.note.emit(" ".join(texts))
        if llm.calibration is not None:
            self._look.start()

    def _free(self) -> None:
        llm, self._llm = self._llm, None
        self._look.stop()
        if llm is not None:
            self._uncalibrated.set()
            llm.close()
            self.loaded.emit(None)

    def _ask(self, question: str, max_tokens: int) -> None:
        try:
            answer = self._chat().ask(question, max_tokens, self.text.emit, self._stopped.is_set)
        except Exception as error:
            self.unanswered.emit(sentence(error))
            return
        self._tell_memory()
        self.answered.emit(
            Reply(answer.text, answer.n_tokens, answer.tokens_per_second, answer.finish, answer.dropped)
        )

    def _new_chat(self) -> None:
        self._conversation = self._empty(self._chat().llm)
        self._tell_chat()

    def _empty(self, llm: Llama) -> Conversation:
        return Conversation(llm, system=self._system or None, sampling=self._sampling)

    def _configure(self, system: str, sampling: Sampling) -> None:
        self._system, self._sampling = system, sampling
        chat = self._conversation
        if chat is None or self._llm is None:
            return
        if sampling != chat.sampling:
            chat.sampling = sampling
        if len(chat.messages) == len(chat.system):  # nothing has been said yet
            self._conversation = self._empty(self._llm)

    def _save(self, path: Path) -> None:
        size = save_chat(path, self._chat())
        self.note.emit(f"The chat is saved in {path.name} ({mib(size)}).")

    def _open(self, path: Path) -> None:
        load_chat(path, self._chat())
        self._tell_chat()

    def _close(self) -> None:
        try:
            self._free()
        finally:
            self._conversation = None
            self._thread.quit()

    def _chat(self) -> Conversation:
        if self._llm is None or self._conversation is None:
            raise MiniCacheError("there is no model yet; choose one first")
        return self._conversation

    def _tell_chat(self) -> None:
        chat = self._chat()
        system = "".join(one["content"] for one in chat.system)
        self.messages.emit([one for one in chat.messages if one["role"] != "system"], system)
        self._tell_memory()

    def _tell_memory(self) -> None:
        llm = self._chat().llm
        report = llm.kv_report()
        self.memory.emit(Memory(report.bytes, report.bytes_f16, llm.n_tokens, llm.n_ctx()))

    def _calibration_step(self, fraction: float, stage: str, detail: str) -> bool:
        # in the calibration's own thread
        self.calibrating.emit(fraction, stage)
        return not self._uncalibrated.is_set()

    @Slot()
    def _look_at_calibration(self) -> None:
        calibration = self._llm.calibration if self._llm is not None else None
        if calibration is not None and calibration.done:
            self._look.stop()
            self.calibrated.emit("" if calibration.plan else sentence(calibration.error))


def cache_name(llm: Llama) -> str:
    """The cache that was settled on: a plan with its ratio, or a type."""
    if llm.cache_spec.plan_file is not None:
        return f"a plan of ratio {llm.kv_report().ratio:.1f}"
    return llm.cache_spec.name


def sentence(error: object) -> str:
    """What an error says, as a sentence of one line."""
    text = " ".join(str(error).split()) or f"something went wrong ({type(error).__name__})"
    text = text[0].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def mib(size: int) -> str:
    """Bytes as people read them."""
    value = size / 2**20
    if value >= 1024:
        return f"{value / 1024:.1f} GiB"
    return f"{value:.0f} MiB" if value >= 100 else f"{value:.1f} MiB"

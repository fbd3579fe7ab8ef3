"""Whose turn it is to use a Llama: it has one sequence of tokens, and room for the logits of one step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import MiniCacheError

Item = TypeVar("Item")

OTHER_THREAD = (
    "another thread is using this Llama; use it in one thread at a time, or make one for each thread"
)
CLOSED = "this Llama is closed; make another one"
GAVE_WAY = (
    "this Llama has been used for something else since, so this generator cannot go on; begin another one"
)


class Turn:
    """The turn of one generator, such as a completion: from its first item until it ends."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        # whether it computes its next item now; else its caller has the last one
        self.running = False
        self.begun = False

    def gives_way(self) -> bool:
        """Whether something else may begin now, in this thread: a program that looks at an item has not gone away."""
        here = self.thread is threading.current_thread() or not self.thread.is_alive()
        return here and not self.running


# how often closing ends what other threads evaluate, in seconds, until they have noticed
ENDING = 0.05


class Here(threading.local):
    """What a thread does with a Llama: the turn that runs in it, and how many uses it is in, one within the other."""

    turn: Turn | None = None
    depth = 0


class Turns:
    """Lets one thread at a time take a step, and none between the steps of another one's generator.

    A generator that its own thread has left unfinished gives way to what that thread does next. The steps of one
    generator may be taken in several threads, as servers do, one after the other.
    """

    def __init__(self) -> None:
        # how many uses there are, and whether they are to end
        self._uses = threading.Condition()
        self._n_uses, self._closing = 0, False
        # a step may contain others of its thread's
        self._stepping = threading.RLock()
        # guards the owner
        self._deciding = threading.Lock()
        self._owner: Turn | None = None
        self._here = Here()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, nothing is closed; several threads may be inside. Raises MiniCacheError once closing has begun."""
        with self._uses:
            if self._closing:
                raise MiniCacheError(CLOSED)
            self._n_uses += 1
        self._here.depth += 1
        try:
            yield
        finally:
            self._here.depth -= 1
            with self._uses:
                self._n_uses -= 1
                self._uses.notify_all()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Inside, no other thread uses the Llama. Raises MiniCacheError where one does, or is about to go on."""
        with self.used():
            with self._deciding:
                if self._owner is not self._here.turn:
                    self._replace(self._here.turn)
                if not self._stepping.acquire(blocking=False):
                    raise MiniCacheError(OTHER_THREAD)
            try:
                yield
            finally:
                self._stepping.release()

    def end(self, stop: Callable[[], None]) -> None:
        """Lets no use begin any more, and waits until there is none; `stop` ends what other threads evaluate.

        Raises MiniCacheError within a use of this thread's.
        """
        if self._here.depth:
            raise MiniCacheError("this Llama cannot be closed by what it calls itself, while it computes")
        with self._uses:
            self._closing = True
            while self._n_uses:
                # every time: another thread that was not evaluating yet may have begun to since
                stop()
                self._uses.wait(ENDING)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, all that this thread does is one turn."""
        if self._here.turn is not None:
            yield
            return
        turn = Turn()
        with self.used():
            self._go_on(turn)
            try:
                yield
            finally:
                self._pause(turn)
                self._end(turn)

    def of(self, generator: Generator[Item, Any, Any]) -> Generator[Item, Any, None]:
        """The same generator, which has the Llama for itself for as long as it lasts."""
        if self._here.turn is not None:  # as part of another one, in whose turn it runs
            yield from generator
            return
        turn, sent = Turn(), None
        try:
            while True:
                with self.used():
                    self._go_on(turn)
                    try:
                        item = generator.send(sent)
                    except StopIteration:
                        return
                    finally:
                        self._pause(turn)
                sent = yield item
        finally:
            generator.close()
            self._end(turn)

    def _go_on(self, turn: Turn) -> None:
        with self._deciding:
            if self._owner is not turn:
                if turn.begun:
                    raise MiniCacheError(GAVE_WAY)
                self._replace(turn)
            turn.thread, turn.running, turn.begun = threading.current_thread(), True, True
            self._here.turn = turn

    def _pause(self, turn: Turn) -> None:
        self._here.turn, turn.running = None, False

    def _end(self, turn: Turn) -> None:
        with self._deciding:
            if self._owner is turn:
                self._owner = None

    def _replace(self, turn: Turn | None) -> None:
        if self._owner is not None and not self._owner.gives_way():
            raise MiniCacheError(OTHER_THREAD)
        self._owner = turn

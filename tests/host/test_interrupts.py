"""Ctrl-C waits where it would be lost, and arrives afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from minicache_cpp.host.interrupts import interrupts, interrupts_afterwards


@pytest.fixture(autouse=True)
def heeds_sigint() -> Iterator[None]:
    """Makes sure that SIGINT is not ignored, as it is in a shell's background jobs, whose children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_it_is_only_remembered() -> None:
    with interrupts() as pressed:
        assert not pressed()
        signal.raise_signal(signal.SIGINT)
        assert pressed()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_it_is_raised_at_the_end() -> None:
    found = []

    def use() -> None:
        with interrupts_afterwards() as pressed:
            signal.raise_signal(signal.SIGINT)
            found.append(pressed())

    with pytest.raises(KeyboardInterrupt):
        use()
    assert found == [True]
    with interrupts_afterwards() as pressed:
        assert not pressed()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_comes_first() -> None:
    def use() -> None:
        with interrupts_afterwards():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("an error")

    with pytest.raises(ValueError, match="an error"):
        use()


def test_who_ignores_it_still_does() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_afterwards() as pressed:
        signal.raise_signal(signal.SIGINT)
        assert not pressed()


def test_another_thread_is_never_interrupted() -> None:
    found = []

    def use() -> None:
        with interrupts_afterwards() as pressed:
            found.append(pressed())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [False]

"""llama.cpp's log: who receives it, in whatever order receivers come and go."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator

import pytest

from minicache_cpp.native.binding import llama_h
from minicache_cpp.native.log import ERROR, NativeLog


@pytest.fixture(autouse=True)
def own_receiver() -> Iterator[list[bytes]]:
    """A program's own callback, which has the log again at the end, and whoever had it before after that."""
    callback, data = llama_h.llama_log_callback(), ctypes.c_void_p()
    llama_h.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    heard: list[bytes] = []
    own = llama_h.llama_log_callback(lambda level, text, data: heard.append(text))
    llama_h.llama_log_set(own, ctypes.c_void_p(0))
    yield heard
    llama_h.llama_log_set(callback, data)


def say(text: bytes) -> None:
    """As llama.cpp does."""
    callback, data = llama_h.llama_log_callback(), ctypes.c_void_p()
    llama_h.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    callback(ERROR, text, data)


def test_a_program_hears_its_log_again_after_a_block(own_receiver: list[bytes]) -> None:
    with NativeLog().installed() as log:
        say(b"one")
    say(b"two")
    assert (list(log.errors), own_receiver) == (["one"], [b"two"])


def test_a_listener_takes_nothing_away(own_receiver: list[bytes]) -> None:
    with NativeLog().installed() as outer, NativeLog().listening() as log:
        say(b"one")
    with NativeLog().listening() as alone:
        say(b"two")
    say(b"three")
    assert (list(outer.errors), list(log.errors), list(alone.errors)) == (["one"], ["one"], ["two"])
    assert own_receiver == [b"two", b"three"]


def test_blocks_may_end_in_the_order_in_which_they_began(own_receiver: list[bytes]) -> None:
    """As those of several threads do; none is called after its end, when it may be gone."""
    first, second = NativeLog().installed(), NativeLog().listening()
    outer, inner = first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    say(b"one")
    assert (list(outer.errors), list(inner.errors)) == ([], ["one"])
    del outer, first
    gc.collect()
    say(b"two")
    second.__exit__(None, None, None)
    say(b"three")
    assert own_receiver == [b"one", b"two", b"three"]


def test_who_is_installed_for_good_stays_it(own_receiver: list[bytes]) -> None:
    log = NativeLog().install()
    with NativeLog().installed() as inside:
        say(b"one")
    say(b"two")
    assert (list(log.errors), list(inside.errors), own_receiver) == (["two"], ["one"], [])

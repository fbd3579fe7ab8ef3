"""The errors and the warning of this package."""

from __future__ import annotations


class MiniCacheError(ValueError, RuntimeError):
    """A request that cannot be served; the message says what was wrong and what to do.

    It is both a ValueError and a RuntimeError: llama_cpp raises the former where a context cannot be made and the
    latter where a state cannot be loaded, and code written for llama_cpp should catch this error too.
    """


class CancelledError(MiniCacheError):
    """Work that was cancelled, by a progress callback that returned False or by cancel()."""


class AbortedError(CancelledError):
    """An evaluation that abort() has ended."""


class OutputError(Exception):
    """An answer that a command cannot print, as where stdout is a file on a full disk."""


class MiniCacheWarning(UserWarning):
    """A setting that suits this model badly, or a note on what "auto" does for a model without a plan."""

"""What this package raises and warns with."""

from __future__ import annotations


class MiniCacheError(ValueError, RuntimeError):
    """A request that can't be served; the text says what was wrong and what to do.

    Both a ValueError and a RuntimeError: llama_cpp raises the one where a context can't be made and the other
    where a state can't be loaded, and code written for llama_cpp should catch ours too.
    """


class MiniCacheWarning(UserWarning):
    """Something measured that makes the setting a bad choice for this model, or what "auto" does without a plan."""

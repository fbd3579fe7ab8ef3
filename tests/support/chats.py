"""Short conversations with tiny models, which give the same answers every time."""

from __future__ import annotations

import pytest

from minicache_cpp import Llama
from minicache_cpp.chat.conversation import Conversation, template_of
from minicache_cpp.chat.sampling import Sampling

SMALL = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
QUIET = pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")


def talk(llm: Llama, system: str | None = "be kind") -> Conversation:
    """A conversation at temperature 0."""
    return Conversation(llm, template_of(llm), system, Sampling(temp=0))

"""Arguments with which `Llama` makes a small context."""

from __future__ import annotations

SETTINGS = {"n_ctx": 256, "n_batch": 128, "verbose": False, "n_threads": 1, "n_threads_batch": 1}

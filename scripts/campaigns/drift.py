"""The process in which two contexts read a long text side by side, an f16 cache and ours, and are shifted alike."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np

from campaigns.children import say
from minicache_cpp.cache.plan_store import find_plan
from minicache_cpp.cache.settings import F16, CacheSpec, MiniCache
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.binding import llama_h
from minicache_cpp.reading.divergence import kl_divergence, log_probabilities
from minicache_cpp.reading.model import NativeModel
from minicache_cpp.reading.scored_context import ScoredContext
from minicache_cpp.text import bundled
from minicache_cpp.text.vocabulary import Vocabulary
from support import tiny_models

BATCH = 32
KEPT = 4  # of the first tokens, which a shift never drops
# of random tokens; the text is repeated, so that its passes can be compared
TINY_PASS = 512


def main(model: Path | None, n_tokens: int, planted: bool) -> None:
    """Reads so many tokens, and writes a line of JSON after each batch, and after each pass through the text."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            path = tiny_models.random_model(n_layer=4).write(Path(folder) / "model.gguf")
            text, n_ctx = tiny_models.prompt(TINY_PASS), 256
        else:
            path, n_ctx = model, 1024
            with Vocabulary(path) as vocabulary:
                texts = [one.read_text(encoding="utf-8") for one in bundled.evaluation_files()]
                text = vocabulary.tokenize("\n\n".join(texts))
        plan = find_plan(read_gguf(path), lambda note: None)
        ours = CacheSpec.of(MiniCache(plan=plan)) if plan else CacheSpec.parse("slerp:start=0.5,window=16")
        with NativeModel(path) as native:
            contexts = [Shifted(ScoredContext(native, spec, n_ctx, BATCH, 1), n_ctx) for spec in (F16, ours)]
            read(contexts, text, n_tokens, planted)
            for one in contexts:
                one.context.close()
    say({"over": True})


def read(contexts: list[Shifted], text: list[int], n_tokens: int, planted: bool) -> None:
    """Reads the text in whole passes until both contexts have read at least this many tokens."""
    n_read = 0
    text = text[: len(text) // BATCH * BATCH]
    while n_read < n_tokens:
        losses, n_shifts = [], contexts[0].n_shifts
        for at in range(0, len(text), BATCH):
            reference, ours = (log_probabilities(one.read(text[at : at + BATCH])) for one in contexts)
            if planted:
                ours = log_probabilities(ours * (1 + n_read / n_tokens))
            losses.append(float(np.mean(kl_divergence(reference, ours))))
            n_read += BATCH
            # a pass of a real model takes longer than a process may be silent
            say({"read": n_read})
        shifts = contexts[0].n_shifts - n_shifts
        say({"loss": float(np.mean(losses)), "tokens": len(text), "shifts": shifts})


class Shifted:
    """A context that drops the older half of its tokens whenever it is full."""

    def __init__(self, context: ScoredContext, n_ctx: int) -> None:
        self.context, self.n_ctx = context, n_ctx
        self.n_tokens = self.n_shifts = 0

    def read(self, tokens: list[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Reads a batch; returns the logits after each of its tokens."""
        if self.n_tokens + len(tokens) > self.n_ctx:
            self._shift()
        (found,) = self.context.decode(tokens, self.n_tokens, 0)
        self.n_tokens += len(tokens)
        return np.array(found[1])

    def _shift(self) -> None:
        dropped = (self.n_tokens - KEPT) // 2
        memory = self.context.memory
        llama_h.llama_memory_seq_rm(memory, 0, KEPT, KEPT + dropped)
        llama_h.llama_memory_seq_add(memory, 0, KEPT + dropped, self.n_tokens, -dropped)
        self.n_tokens -= dropped
        self.n_shifts += 1

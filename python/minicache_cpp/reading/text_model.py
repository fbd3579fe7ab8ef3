"""A model with one KV cache, for benchmarks: how likely is a text, and how does the model continue one."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ..cache.report import KVReport
from ..cache.room import refuse_too_large
from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..host.threads import default_threads
from ..modelfile.gguf_file import GGUFFile, read_gguf
from ..native.model_shape import model_shape
from ..text.vocabulary import Vocabulary
from .divergence import log_probabilities
from .model import NativeModel
from .scored_context import ScoredContext


class TextModel:
    """A loaded model, its vocabulary, and a context with one cache; decoding is greedy.

    n_ctx: tokens, 0 for what the model was trained for.
    ubatch: tokens read at a time, which MiniCache sees exactly while earlier ones are merged.
    """

    def __init__(
        self,
        path: str | Path | GGUFFile,
        spec: CacheSpec,
        n_ctx: int = 0,
        ubatch: int = 64,
        threads: int | None = None,
        gpu_layers: int = 0,
    ) -> None:
        file = read_gguf(path)
        self.n_ctx = n_ctx or model_shape(file).n_ctx_train
        if self.n_ctx < 8 or ubatch < 1:
            raise MiniCacheError(
                f"a context of {self.n_ctx} tokens in ubatches of {ubatch} is too small; "
                "take 8 tokens or more, in ubatches of 1 or more"
            )
        refuse_too_large(file, self.n_ctx, [spec], gpu_layers)
        with contextlib.ExitStack() as stack:
            self.vocabulary = stack.enter_context(Vocabulary(file.path))
            self.template = self.vocabulary.chat_template()
            self.model = stack.enter_context(NativeModel(file.path, gpu_layers))
            self.context = stack.enter_context(
                ScoredContext(self.model, spec, self.n_ctx, ubatch, threads or default_threads())
            )
            self.stack = stack.pop_all()
        self.held: list[int] = []  # tokens in the cache, read once for all that is asked about them

    def __enter__(self) -> TextModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the context and the model."""
        self.stack.close()

    def report(self) -> KVReport:
        """What the cache takes, and what is merged."""
        return self.context.report()

    def hold(self, tokens: Sequence[int]) -> None:
        """Fills the cache with these tokens and no others.

        They are not read again if they are those of the call before, as with several answers to one question. Keeping
        only a common beginning would cut the rest into other ubatches, and results would depend on the order of calls.
        """
        if self.held and self.held == list(tokens):
            self.context.back()
            return
        self.context.clear()
        self.context.read(tokens, 0)
        self.context.mark()
        self.held = list(tokens)

    def score(self, before: Sequence[int], tokens: Sequence[int]) -> tuple[float, bool]:
        """The log-likelihood of tokens after others, in nats, and whether greedy decoding would produce them.

        What comes before loses its beginning where it is too long for the context.
        """
        if not tokens:
            return 0.0, True
        if len(tokens) >= self.n_ctx:
            raise MiniCacheError(
                f"{len(tokens)} tokens to score do not fit a context of {self.n_ctx}; make it larger"
            )
        before = list(before)[-(self.n_ctx - len(tokens) + 1) :]
        if not before:
            raise MiniCacheError("a likelihood needs a token before the first one")
        self.hold(before[:-1])
        read = [before[-1], *tokens[:-1]]
        total, greedy, at = 0.0, True, 0
        for _, logits in self.context.decode(read, len(before) - 1, 0):
            wanted = list(tokens[at : at + len(logits)])
            total += float(log_probabilities(logits)[np.arange(len(wanted)), wanted].sum(dtype=np.float64))
            greedy = greedy and logits.argmax(axis=1).tolist() == wanted
            at += len(wanted)
        return total, greedy

    def generate(self, prompt: Sequence[int], n_most: int, stops: Sequence[str] = ()) -> str:
        """The greedy continuation, up to the model's end mark, one of the texts in `stops`, or `n_most` tokens."""
        n_most = min(n_most, self.n_ctx - 1)
        prompt = list(prompt)[-(self.n_ctx - n_most) :]
        if not prompt:
            raise MiniCacheError("an empty prompt cannot be continued")
        self.hold(prompt[:-1])
        last, found, text = prompt[-1], list[int](), ""
        while len(found) < n_most:
            (last,) = self.context.likeliest([last], len(self.held) + len(found), 1)
            if self.vocabulary.ends(last):
                break
            found.append(last)
            text = self.vocabulary.detokenize(found)
            if ends := [at for stop in stops if stop and (at := text.find(stop)) >= 0]:
                return text[: min(ends)]
        return text

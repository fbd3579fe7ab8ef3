"""llama_cpp's context as Llama holds it: device errors are exceptions, and closing it never ends the process."""

from __future__ import annotations

from typing import Any

# first, because it makes llama_cpp load our library
from ..native import binding  # isort: skip
from llama_cpp import _internals

from ..errors import AbortedError
from .usage import Usage

ABORTED = 2  # llama_decode's result


class GuardedContext(_internals.LlamaContext):
    """Raises MiniCacheError where a device fails or an assertion of llama.cpp does not hold.

    Afterwards the context refuses every batch, state and clearing with that reason; it can still be closed.
    """

    usage: Usage

    @classmethod
    def take_over(cls, context: _internals.LlamaContext) -> Usage:
        """Guards a context that llama_cpp has made; returns the record of when it is used."""
        context.__class__ = cls
        assert isinstance(context, GuardedContext)
        context.usage = Usage()
        binding.stop(context.ctx, False)
        return context.usage

    def decode(self, batch: Any) -> None:
        with self.usage:
            status = binding.decode(self.ctx, batch.batch)
        if status == ABORTED:
            raise AbortedError("the evaluation was ended by abort()")
        if status:
            raise RuntimeError(f"llama_decode returned {status}")

    def encode(self, batch: Any) -> None:
        with self.usage:
            status = binding.encode(self.ctx, batch.batch)
        if status:
            raise RuntimeError(f"llama_encode returned {status}")

    def kv_cache_clear(self) -> None:
        binding.clear(self.ctx)

    def close(self) -> None:
        ctx, self.ctx = self.ctx, None  # the callback that llama_cpp would free it by finds nothing
        if ctx is not None and not binding.free_context(ctx):
            self.model._exit_stack.pop_all()  # and so the model is kept
        super().close()  # type: ignore[no-untyped-call]

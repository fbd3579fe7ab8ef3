"""What is done while an allocation fails, and what must hold afterwards.

`check` gets the exception that was raised, or None. It returns a description of what is wrong, or "".
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from minicache_cpp import MiniCacheError
from minicache_cpp.cache.context_report import read_report
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.native import binding
from minicache_cpp.native.batch import BatchToken, TokenBatch
from minicache_cpp.native.binding import llama_h
from oracle.cells import Token
from oracle.model import Config
from support.contexts import Context, ContextRefused, Logits, run
from support.loaded import Loaded
from support.plans import coded
from support.tiny_models import prompt, random_model

# refusals: ours, the tests' of a context, and Python's own
REFUSALS = (MiniCacheError, ContextRefused, MemoryError)
CELLS = 2048  # so that buffers are large enough to be counted


class Operation(Protocol):
    def prepare(self) -> None: ...
    def run(self) -> None: ...
    def check(self, raised: Exception | None) -> str: ...


class Workshop:
    """A model, a plan and a context that nothing happens to."""

    def __init__(self, folder: Path) -> None:
        model = random_model(n_layer=4, n_embd=64, n_head=2, n_head_kv=1)
        self.loaded = Loaded(model, folder / "model.gguf")
        base = Config(((0, 1), (2, 3)), retain=0.1, window=5, n_ubatch=16, n_cells=CELLS)
        self.config = coded(self.loaded, base, folder / "plan.gguf")
        self.tokens, self.more = run(prompt(20)), run(prompt(3, 1), 20)
        self.batch = TokenBatch(64)
        self.other = self.context()
        self.expected = [self.decode(self.other, self.tokens), self.decode(self.other, self.more)]
        self.lost = 0  # contexts that refused to be used further

    def context(self) -> Context:
        return Context.of(self.loaded.model, self.config)

    def decode(self, ctx: Context, tokens: list[Token]) -> Logits:
        """As Context.decode(), through the call in which errors are exceptions."""
        self.batch.decode(ctx.handle, [BatchToken(one.id, one.pos, one.seq, True) for one in tokens])
        logits = llama_h.llama_get_logits(ctx.handle)
        return np.array(np.ctypeslib.as_array(logits, (len(tokens), self.loaded.model.n_vocab)))

    def others_go_on(self) -> str:
        """What is wrong with the context that nothing happened to."""
        return self.wrong_from_the_start(self.other, "another context")

    def wrong_from_the_start(self, ctx: Context, which: str) -> str:
        binding.clear(ctx.handle)
        found = [self.decode(ctx, self.tokens), self.decode(ctx, self.more)]
        same = all((one == other).all() for one, other in zip(found, self.expected, strict=True))
        return "" if same else f"{which} computes something else"


class Open:
    """A plan is read."""

    def __init__(self, shop: Workshop) -> None:
        self.shop, self.path = shop, str(shop.config.plan)
        self.expected = PlanFile.open(self.path).plan

    def prepare(self) -> None: ...

    def run(self) -> None:
        PlanFile.open(self.path)

    def check(self, raised: Exception | None) -> str:
        return "" if PlanFile.open(self.path).plan == self.expected else "the plan is read as another one"


class Make:
    """A context is made and freed."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop

    def prepare(self) -> None: ...

    def run(self) -> None:
        self.shop.context().close()

    def check(self, raised: Exception | None) -> str:
        with self.shop.context() as ctx:
            return self.shop.wrong_from_the_start(ctx, "the next context") or self.shop.others_go_on()


class InContext:
    """What happens to a context that has read some tokens. Where it refuses to go on, it is replaced."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.ctx = shop.context()

    def prepare(self) -> None:
        binding.clear(self.ctx.handle)
        self.shop.decode(self.ctx, self.shop.tokens)

    def check(self, raised: Exception | None) -> str:
        try:
            wrong = self.wrong_at_once(raised) or self.shop.wrong_from_the_start(self.ctx, "the context")
        except MiniCacheError as error:
            if raised is None or "cannot be used any more" not in str(error):
                return f"the context does not go on: {error}"
            self.shop.lost += 1
            wrong = ""
            binding.free_context(self.ctx.handle)
            self.ctx = self.shop.context()
        return wrong or self.shop.others_go_on()

    def wrong_at_once(self, raised: Exception | None) -> str:
        """What is wrong before anything else is done with the context."""
        return ""

    def goes_on_after_the_tokens(self) -> str:
        same = (self.shop.decode(self.ctx, self.shop.more) == self.shop.expected[1]).all()
        return "" if same else "the next tokens are computed otherwise than before"


class Decode(InContext):
    def run(self) -> None:
        self.shop.decode(self.ctx, self.shop.more)


class Shift(InContext):
    """The batch after a move of positions."""

    def prepare(self) -> None:
        super().prepare()
        self.ctx.seq_rm(0, 2, 6)
        self.ctx.seq_add(0, 6, -1, -4)

    def run(self) -> None:
        self.shop.decode(self.ctx, run(prompt(2), 16))


class Save(InContext):
    def prepare(self) -> None:
        super().prepare()
        self.expected = bytes(binding.get_state(self.ctx.handle))

    def run(self) -> None:
        binding.get_state(self.ctx.handle)

    def wrong_at_once(self, raised: Exception | None) -> str:
        if bytes(binding.get_state(self.ctx.handle)) != self.expected:
            return "the state is another one afterwards"
        return self.goes_on_after_the_tokens()


class Load(InContext):
    """A state replaces other tokens, or leaves them as they were."""

    def __init__(self, shop: Workshop) -> None:
        super().__init__(shop)
        super().prepare()
        self.state = bytes(binding.get_state(self.ctx.handle))
        self.accepted = False

    def prepare(self) -> None:
        binding.clear(self.ctx.handle)
        self.shop.decode(self.ctx, run(prompt(30, 4)))
        self.before = bytes(binding.get_state(self.ctx.handle))
        self.positions = self.ctx.positions(0)
        self.accepted = False

    def run(self) -> None:
        self.accepted = binding.set_state(self.ctx.handle, self.state)

    def wrong_at_once(self, raised: Exception | None) -> str:
        if self.accepted:
            return self.goes_on_after_the_tokens()
        # Where llama.cpp has emptied the context, the positions say so, and Llama empties it altogether.
        if self.ctx.positions(0) != self.positions:
            return ""
        same = bytes(binding.get_state(self.ctx.handle)) == self.before
        return "" if same else "a state that was not accepted has changed the context, and nothing shows it"


class Clear(InContext):
    def run(self) -> None:
        binding.clear(self.ctx.handle)


class Report(InContext):
    """What is asked of a context, and the flag that ends its computation."""

    def run(self) -> None:
        binding.stop(self.ctx.handle, False)
        read_report(self.ctx.handle)
        binding.fingerprint(self.shop.loaded.model.handle)

    def wrong_at_once(self, raised: Exception | None) -> str:
        return self.goes_on_after_the_tokens()


class Unguarded(InContext):
    """A call of llama.h itself, which ends the process: what a campaign must notice."""

    def run(self) -> None:
        self.ctx.seq_add(0, 6, -1, 40)
        self.ctx.seq_cp(0, 0)
        llama_h.llama_decode(self.ctx.handle, self.shop.batch.fill([BatchToken(5, 60, 0, True)]))


OPERATIONS: dict[str, Callable[[Workshop], Operation]] = {
    "open": Open,
    "make": Make,
    "decode": Decode,
    "shift": Shift,
    "save": Save,
    "load": Load,
    "clear": Clear,
    "report": Report,
    "unguarded": Unguarded,
}
# those that must not end the process
GUARDED = tuple(name for name in OPERATIONS if name != "unguarded")

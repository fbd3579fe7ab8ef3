"""What a user asks of a plan: a ratio, a loss or a size."""

from __future__ import annotations

from dataclasses import dataclass

from ..cache.plan import Plan
from ..cache.settings import F16
from ..cache.size import bytes_beside, kv_bytes, plan_bytes, plan_fixed_bytes
from ..host.units import mib
from ..modelfile.shape import ModelShape

# the context, in tokens, at which a ratio is taken: retained tokens and alignment take whole steps of bytes
SIZED_AT = 4096


@dataclass(frozen=True)
class Target:
    """What a plan must reach: one of `ratio`, `max_kl` and `budget`."""

    # f16 bytes per cached token over the plan's, at least
    ratio: float | None = None
    # mean KL divergence from the model's own f16 cache, in nats per token, at most
    max_kl: float | None = None
    # bytes of the whole cache at a context of n_ctx tokens, at most
    budget: int | None = None
    n_ctx: int = 0

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"ratio {self.ratio:g}"
        if self.max_kl is not None:
            return f"KL of at most {self.max_kl:g}"
        return f"{mib(self.budget or 0)} at {self.n_ctx} tokens"

    def fits(self, shape: ModelShape, plan: Plan) -> bool:
        """Whether a plan is small enough; with `max_kl` every plan is."""
        if self.budget is not None:
            return plan_bytes(shape, plan, self.n_ctx) <= self.budget
        return self.ratio is None or ratio(shape, plan) >= self.ratio


def ratio(shape: ModelShape, plan: Plan) -> float:
    """f16 bytes per cached token over the plan's, without what does not grow with the context."""
    n_bytes = plan_bytes(shape, plan, SIZED_AT) - plan_fixed_bytes(shape, plan, SIZED_AT)
    f16 = kv_bytes(shape, F16, SIZED_AT) - bytes_beside(shape, (F16.type_k, F16.type_v), SIZED_AT)
    return f16 / n_bytes

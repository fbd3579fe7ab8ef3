"""Choosing a plan: which pairs are coded with which widths, what stays plain, and whether tokens are retained.

What each part's errors do to the model's output is measured on the model: with all pairs at 8 bits but one part
at 3, the KL divergence that this adds, per unit of squared error, is the part's sensitivity. One price for a byte then
settles all widths (allocation.py). Plans and plain caches are compared by what they measure, so that no plan is worse
than a plain cache of at most its size.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import kv_size
from .allocation import PLAIN, Candidate, Choice, Part, allocate
from .code_format import Layout
from .config import CacheSpec
from .errors import MiniCacheError
from .ggml_types import CACHE_TYPES, GGML_TYPES
from .kv_size import ModelShape
from .measurement import Measured, Meter
from .pair_fit import PairFit
from .plan_file import Plan, write_plan
from .report import mib

SIZED_AT = 4096  # tokens at which a ratio is taken: a few bytes are there once for many tokens
PROBE_WIDTH = 3  # near to what a plan of a ratio of 5 has: sensitivities fall a little where errors are large
LEAST_SHARE = 0.02  # of the mean: a part that measures less is not trusted to be that harmless
PLAIN_TYPES = ("f16", "q8_0", "q4_0")  # what layers that are not coded can have
RETAIN = 1 / 128  # tried beside retaining nothing
POOL_TYPE = "q8_0"  # of what is retained, and of the window: f16 where heads can't have that
ROUNDS = 7  # of the search for --max-kl


@dataclass(frozen=True)
class Target:
    """What is asked for: one of the three."""

    ratio: float | None = None  # f16 bytes per cached token over the plan's, at least
    max_kl: float | None = None
    budget: int | None = None  # bytes of the whole cache at a context of n_ctx tokens, at most
    n_ctx: int = 0

    def __str__(self) -> str:
        if self.ratio is not None:
            return f"ratio {self.ratio:g}"
        if self.max_kl is not None:
            return f"KL of at most {self.max_kl:g}"
        return f"{mib(self.budget or 0)} at {self.n_ctx} tokens"

    def fits(self, shape: ModelShape, plan: Plan) -> bool:
        """Whether a plan is small enough."""
        if self.budget is not None:
            return kv_size.plan_bytes(shape, plan, self.n_ctx) <= self.budget
        return self.ratio is None or ratio(shape, plan) >= self.ratio


@dataclass(frozen=True)
class Found:
    """A plan, with what was measured and expected of it."""

    plan: Plan
    choices: list[Choice] | None  # None where all layers are plain
    measured: Measured
    why: str

    def n_bytes(self, shape: ModelShape, n_ctx: int) -> int:
        return kv_size.plan_bytes(shape, self.plan, n_ctx)


@dataclass
class Sensitivities:
    """KL divergence per unit of squared error, of K and V of each pair."""

    k: list[float] = field(default_factory=list)
    v: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)  # of what the probes of all pairs measured together


class Planner:
    def __init__(
        self,
        shape: ModelShape,
        fits: Sequence[PairFit],
        meter: Meter,
        base: Plan,  # without pairs and types, with the window that plans with pairs have
        folder: Path,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.shape, self.fits, self.meter, self.base, self.folder = shape, list(fits), meter, base, folder
        self.on_note = on_note
        self.sensitivities = Sensitivities()

    #
    # measuring
    #

    def write(self, plan: Plan, path: Path) -> Path:
        codecs = {
            fit.a: fit.codec(pair.layout_k, pair.layout_v)
            for pair in plan.pairs
            for fit in self.fits
            if fit.a == pair.a
        }
        write_plan(path, plan, codecs)
        return path

    def measure(self, plan: Plan, kind: str, name: str) -> Measured:
        """What a plan costs; a plain one is measured as a plain cache."""
        if not plan.pairs:
            return self.meter.measure(CacheSpec(plan.type_k, plan.type_v), kind, name)
        path = self.write(replace(plan, notes={}), self.folder / f"tried-{os.getpid()}.gguf")
        return self.meter.measure(CacheSpec.parse(str(path)), kind, name)

    def plain(self, name: str, kind: str = "measure") -> Measured:
        return self.meter.measure(CacheSpec(name, name), kind, name)

    #
    # sensitivities
    #

    def probe(self, tried: Sequence[Choice] | None = None) -> None:
        """Measure the sensitivities, with each part at 3 bits in turn, or as it is in `tried`."""
        exact = [Choice(uniform(fit.k.n_unit, 8), uniform(fit.v.n_unit, 8)) for fit in self.fits]
        base = self._probe(exact, "all pairs at 8 bits")
        added: dict[str, list[float]] = {"k": [], "v": []}
        errors: dict[str, list[float]] = {"k": [], "v": []}
        for number, fit in enumerate(self.fits):
            for kind, part in (("k", fit.k), ("v", fit.v)):
                layout = uniform(part.n_unit, PROBE_WIDTH)
                if tried is not None:
                    layout = getattr(tried[number], kind) or layout
                choices = list(exact)
                choices[number] = replace(exact[number], **{kind: layout})
                name = f"{kind.upper()} of layers {fit.a}+{fit.b}"
                added[kind].append(self._probe(choices, name) - base)
                errors[kind].append(part.error(layout) - part.error(getattr(exact[number], kind)))
        together = [max(one, 0.0) for kind in "kv" for one in added[kind]]
        least = max(LEAST_SHARE * sum(together) / max(1, len(together)), 1e-9)
        for kind in "kv":
            values = [
                max(one, least) / max(error, 1e-30)
                for one, error in zip(added[kind], errors[kind], strict=True)
            ]
            setattr(self.sensitivities, kind, values)
        if tried is None:
            both = [max(k, least) + max(v, least) for k, v in zip(added["k"], added["v"], strict=True)]
            self.sensitivities.share = [one / sum(both) for one in both]

    def _probe(self, choices: Sequence[Choice], name: str) -> float:
        return self.measure(self.plan_of(choices, "f16"), "measure", name).kl

    #
    # plans
    #

    def plan_of(self, choices: Sequence[Choice], plain_type: str, retain: float = 0.0) -> Plan:
        pairs = [
            fit.format(choice.k, choice.v)
            for fit, choice in zip(self.fits, choices, strict=True)
            if choice.k is not None and choice.v is not None
        ]
        return replace(
            self.base,
            rope_block=self.base.rope_block if pairs else 0,
            type_k=plain_type,
            type_v=plain_type,
            pairs=tuple(pairs),
            retain=retain,
            pool_type=POOL_TYPE if retain or (pairs and self.base.window and self.can_retain()) else "f16",
            window=self.base.window if pairs else 0,
        )

    def candidates(self, plain_type: str, plain_kl: float) -> list[Candidate]:
        found = []
        for fit, k, v, share in zip(
            self.fits, self.sensitivities.k, self.sensitivities.v, self.sensitivities.share, strict=True
        ):
            layer = self.shape.layers[fit.a]
            n = layer.n_head_kv
            row = GGML_TYPES[plain_type]
            found.append(
                Candidate(
                    fit.a,
                    fit.b,
                    Part(fit.k.unit_errors, k, n),
                    Part(fit.v.unit_errors, v, n),
                    plain_kl * share,
                    2 * (row.row_bytes(layer.n_k) + row.row_bytes(layer.n_v)),
                )
            )
        return found

    def plain_types(self) -> list[str]:
        """Those that this model's heads can have."""
        sizes = {size for one in self.shape.attention_layers for size in (one.head_size_k, one.head_size_v)}
        return [name for name in CACHE_TYPES if all(size % GGML_TYPES[name].block == 0 for size in sizes)]

    def coded(self, target: Target, retain: float = 0.0) -> tuple[Plan, list[Choice]] | None:
        """The plan that is expected to lose least within the target, None where none fits."""
        best: tuple[float, Plan, list[Choice]] | None = None
        n_plain = len(self.shape.attention_layers) - 2 * len(self.fits)
        for name in self.plain_types():
            if name not in PLAIN_TYPES:
                continue
            plain_kl = self.plain(name).kl if name != "f16" else 0.0

            def small_enough(choices: list[Choice], name: str = name) -> bool:
                return target.fits(self.shape, self.plan_of(choices, name, retain))

            found = allocate(self.candidates(name, plain_kl), small_enough)
            if found is None or all(choice == PLAIN for choice in found[0]):
                continue
            loss = found[1] + plain_kl * n_plain / len(self.shape.attention_layers)
            if best is None or loss < best[0]:
                best = loss, self.plan_of(found[0], name, retain), found[0]
        return best[1:] if best else None

    def best_coded(self, target: Target) -> Found | None:
        """The better, as measured, of a plan that retains nothing and one that retains a few tokens."""
        plain = self.coded(target)
        if plain is None:
            return None
        best = Found(*plain, self.measure(plain[0], "measure", f"codes, {target}"), "the least measured loss")
        if self.can_retain() and (retaining := self.coded(target, RETAIN)):
            measured = self.measure(retaining[0], "measure", f"codes, {target}, with retained tokens")
            if measured.kl < best.measured.kl:
                best = Found(*retaining, measured, "the least measured loss; retained tokens lower it")
        return best

    def can_retain(self) -> bool:
        return POOL_TYPE in self.plain_types()

    def plain_plan(self, name: str) -> Plan:
        return self.plan_of([PLAIN] * len(self.fits), name)

    def choose(self, target: Target, refine: int = 0) -> Found:
        """The plan for a target, at no more loss than any plain cache that fits it."""
        found = self._choose(target)
        for _ in range(refine):
            if found.choices is None:
                break
            before, self.sensitivities = self.sensitivities, replace(self.sensitivities)
            self.probe(found.choices)
            again = self._choose(target)
            smaller = ratio(self.shape, again.plan) > ratio(self.shape, found.plan)
            better = smaller if target.max_kl is not None else again.measured.kl < found.measured.kl
            if not better:
                self.sensitivities = before
                break
            found = again
        return found

    def _choose(self, target: Target) -> Found:
        if target.max_kl is not None:
            return self.smallest(target.max_kl)
        coded = self.best_coded(target) if self.fits else None
        for name in self.plain_types():
            plan = self.plain_plan(name)
            if target.fits(self.shape, plan):
                measured = self.measure(plan, "measure", name)
                if coded is None or measured.kl <= coded.measured.kl:
                    coded = Found(plan, None, measured, f"plain {name} measures no worse than any code here")
        if coded is not None:
            return coded
        if self.fits:
            raise MiniCacheError(f"{target} can't be had: {self.least()}{self.least_window(target)}")
        smallest = min(self.plain_types(), key=lambda one: GGML_TYPES[one].row_bytes(32))
        plan = self.plain_plan(smallest)
        self.on_note(f"{target} can't be had, as no layers of this model can be paired: {self.least()}")
        return Found(plan, None, self.measure(plan, "measure", smallest), "the smallest plain type")

    def least(self) -> str:
        """How small this model's cache can get."""
        if self.fits:
            choices = [Choice(uniform(fit.k.n_unit, 0), uniform(fit.v.n_unit, 0)) for fit in self.fits]
            plans = [self.plan_of(choices, name) for name in self.plain_types()]
        else:
            plans = [self.plain_plan(name) for name in self.plain_types()]
        return f"its cache can be made at most {max(ratio(self.shape, plan) for plan in plans):.2f} times smaller"

    def least_window(self, target: Target) -> str:
        """What a budget pays for the window."""
        if target.budget is None or not self.base.window:
            return ""
        coded = self.plan_of([Choice(Layout(), Layout()) for _ in self.fits], "f16")
        taken = mib(kv_size.plan_window_bytes(self.shape, coded))
        return f"; its window of {self.base.window} tokens takes {taken}, --window 0 does without"

    def smallest(self, max_kl: float) -> Found:
        """The smallest plan that measures no more than so much."""
        best: Found | None = None
        for name in self.plain_types():
            plan = self.plain_plan(name)
            measured = self.measure(plan, "measure", name) if name != "f16" else Measured(0.0, 1.0)
            if measured.kl <= max_kl and (
                best is None or ratio(self.shape, plan) > ratio(self.shape, best.plan)
            ):
                best = Found(plan, None, measured, f"plain {name} is the smallest that loses no more")
        low, high = 1.0, 32.0
        for _ in range(ROUNDS if self.fits else 0):
            middle = (low * high) ** 0.5
            found = self.best_coded(Target(ratio=middle))
            if found is None or found.measured.kl > max_kl:
                high = middle
                continue
            low = middle
            if best is None or ratio(self.shape, found.plan) > ratio(self.shape, best.plan):
                best = found
        if best is None:
            raise MiniCacheError(f"no cache of this model loses at most a KL of {max_kl:g}")
        return best


def uniform(n_unit: int, width: int) -> Layout:
    """All units of one width, none with 0."""
    return Layout.of([width] * n_unit)


def ratio(shape: ModelShape, plan: Plan) -> float:
    """f16 bytes per cached token over the plan's, without what is allocated once."""
    n_bytes = kv_size.plan_bytes(shape, plan, SIZED_AT) - kv_size.plan_fixed_bytes(shape, plan)
    return kv_size.kv_bytes(shape, CacheSpec("f16", "f16"), SIZED_AT) / n_bytes


def bits(layout: Layout, size: int) -> float:
    """Bits per value of both layers' heads of this size."""
    return layout.bits / (2 * size)


def choice_table(planner: Planner, found: Found) -> list[dict[str, Any]]:
    """What was chosen for each pair, and why."""
    if found.choices is None:
        return []
    sensitivities = planner.sensitivities
    name = found.plan.type_k
    candidates = planner.candidates(name, planner.plain(name).kl if name != "f16" else 0.0)
    losses = [one.loss(choice) for one, choice in zip(candidates, found.choices, strict=True)]
    rows = []
    for index, (fit, choice, loss) in enumerate(zip(planner.fits, found.choices, losses, strict=True)):
        layer = planner.shape.layers[fit.a]
        coded = choice.k is not None and choice.v is not None
        rows.append(
            {
                "layers": [fit.a, fit.b],
                "kind": "code" if coded else name,
                "bits_k": bits(choice.k, layer.head_size_k) if choice.k else None,
                "bits_v": bits(choice.v, layer.head_size_v) if choice.v else None,
                "units_k": list(choice.k.units) if choice.k else None,
                "units_v": list(choice.v.units) if choice.v else None,
                "error_k": relative_error(fit.k.error(choice.k), fit.k.error(Layout())) if choice.k else None,
                "error_v": relative_error(fit.v.error(choice.v), fit.v.error(Layout())) if choice.v else None,
                "sensitivity_k": sensitivities.k[index],
                "sensitivity_v": sensitivities.v[index],
                "share": loss / sum(losses) if sum(losses) else 0.0,
            }
        )
    return rows


def relative_error(error: float, whole: float) -> float:
    return error / whole if whole else 0.0

"""Choosing a plan: which pairs are coded with which widths, which layers stay plain in which types, and whether tokens
are retained.

What each part's errors do to the model's output is measured on the model: with all pairs at 8 bits but one part
at 3 (of a layer that is in no pair, one part in a small type), the KL divergence that this adds, per unit of squared
error, is the part's sensitivity. One price for a byte then settles all widths and types (allocation.py). Plans and
plain caches are compared by what they measure, so that no plan is worse than a plain cache of at most its size.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import kv_size
from .allocation import Candidate, Choice, Part, PlainPart, allocate
from .code_format import Layout
from .config import CacheSpec
from .errors import MiniCacheError
from .ggml_types import CACHE_TYPES, GGML_TYPES
from .kv_size import ModelShape
from .measurement import Measured, Meter
from .pair_fit import PairFit
from .plain_fit import PlainFit
from .plan_file import PlainLayer, Plan, write_plan
from .report import mib

SIZED_AT = 4096  # tokens at which a ratio is taken: a few bytes are there once for many tokens
PROBE_WIDTH = 3  # near to what a plan of a ratio of 5 has: sensitivities fall a little where errors are large
LEAST_SHARE = 0.02  # of the mean: a part that measures less is not trusted to be that harmless
PROBE_TYPE = "q4_0"  # of a layer that is in no pair
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
    choices: list[Choice] | None  # of each candidate; None where all layers are plain in one type
    measured: Measured
    why: str

    def n_bytes(self, shape: ModelShape, n_ctx: int) -> int:
        return kv_size.plan_bytes(shape, self.plan, n_ctx)


@dataclass
class Sensitivities:
    """KL divergence per unit of squared error, of K and V of each pair, and of each layer that is in none."""

    k: list[float] = field(default_factory=list)
    v: list[float] = field(default_factory=list)
    plain: float = 1.0  # what plain types of pairs lose, as measured, over what codes' losses let expect


Probe = tuple[str, str, list[Choice], float]  # "k" or "v", of which layers, choices, the error that they add


class Planner:
    """Plans for a model, from the fits of its pairs and of its layers.

    Without fits of layers all layers that are not coded have one type.
    """

    def __init__(
        self,
        shape: ModelShape,
        fits: Sequence[PairFit],
        meter: Meter,
        base: Plan,  # without pairs and types, with the window that plans with pairs have
        folder: Path,
        on_note: Callable[[str], None] = lambda text: None,
        layers: Sequence[PlainFit] = (),
    ) -> None:
        self.shape, self.fits, self.meter, self.base, self.folder = shape, list(fits), meter, base, folder
        self.on_note = on_note
        self.layers: Mapping[int, PlainFit] = {one.layer: one for one in layers}
        paired = {layer for fit in self.fits for layer in (fit.a, fit.b)}
        self.singles = [one for one in layers if one.layer not in paired]
        self.sensitivities = Sensitivities()

    #
    # measuring
    #

    def write(self, plan: Plan, path: Path) -> Path:
        codecs = {
            fit.a: fit.codec(group.layout_k, group.layout_v)
            for group in plan.groups
            for fit in self.fits
            if fit.a == group.first
        }
        write_plan(path, plan, codecs)
        return path

    def measure(self, plan: Plan, kind: str, name: str) -> Measured:
        """What a plan costs; a plain one is measured as a plain cache."""
        if not plan.groups and not plan.plain:
            return self.meter.measure(CacheSpec(plan.type_k, plan.type_v), kind, name)
        path = self.write(replace(plan, notes={}), self.folder / f"tried-{os.getpid()}.gguf")
        return self.meter.measure(CacheSpec.parse(str(path)), kind, name)

    def plain(self, name: str, kind: str = "measure") -> Measured:
        return self.meter.measure(CacheSpec(name, name), kind, name)

    #
    # sensitivities
    #

    def probe(self, tried: Sequence[Choice] | None = None) -> None:
        """Measure the sensitivities, with each part at 3 bits or in a small type in turn, or as it is in `tried`."""
        base = self._probe(self.exact(), "all pairs at 8 bits")
        added: dict[str, list[float]] = {"k": [], "v": []}
        errors: dict[str, list[float]] = {"k": [], "v": []}
        for kind, name, choices, error in (*self._pair_probes(tried), *self._layer_probes()):
            added[kind].append(self._probe(choices, f"{kind.upper()} of {name}") - base)
            errors[kind].append(error)
        together = [max(one, 0.0) for kind in "kv" for one in added[kind]]
        least = max(LEAST_SHARE * sum(together) / max(1, len(together)), 1e-9)
        k, v = (
            [
                max(one, least) / max(error, 1e-30)
                for one, error in zip(added[kind], errors[kind], strict=True)
            ]
            for kind in "kv"
        )
        self.sensitivities = Sensitivities(k, v)
        self.sensitivities.plain = self._plain_factor()

    def _pair_probes(self, tried: Sequence[Choice] | None) -> Iterator[Probe]:
        for number, fit in enumerate(self.fits):
            for kind, part in (("k", fit.k), ("v", fit.v)):
                layout = (getattr(tried[number], kind) if tried else None) or uniform(
                    part.n_unit, PROBE_WIDTH
                )
                choices = self.exact()
                error = part.error(layout) - part.error(getattr(choices[number], kind))
                changed = {"k": choices[number].k, "v": choices[number].v} | {kind: layout}
                choices[number] = Choice(**changed)
                yield kind, f"layers {fit.a}+{fit.b}", choices, error

    def _layer_probes(self) -> Iterator[Probe]:
        """Of layers that are in no pair. Where heads can't have the type there is nothing to choose from."""
        for number, single in enumerate(self.singles, len(self.fits)):
            for kind, errors in (("k", single.k), ("v", single.v)):
                small = PROBE_TYPE if PROBE_TYPE in errors else "f16"
                choices = self.exact()
                choices[number] = Choice(types=((small, "f16") if kind == "k" else ("f16", small),))
                yield kind, f"layer {single.layer}", choices, errors[small] - errors["f16"] or 1.0

    def exact(self) -> list[Choice]:
        """All parts as good as they can be as codes, other layers as f16."""
        codes = [Choice(uniform(fit.k.n_unit, 8), uniform(fit.v.n_unit, 8)) for fit in self.fits]
        return codes + [Choice(types=(("f16", "f16"),)) for _ in self.singles]

    def _probe(self, choices: Sequence[Choice], name: str) -> float:
        return self.measure(self.plan_of(choices), "measure", name).kl

    def _plain_factor(self) -> float:
        """All layers in one type tell how well codes' sensitivities fit plain types."""
        if not self.fits or not self.layers or PROBE_TYPE not in self.plain_types():
            return 1.0
        self.sensitivities.plain = 1.0
        expected = [
            sum(part.losses[PROBE_TYPE] for parts in one.plain for part in parts) for one in self.candidates()
        ]
        n_pair = len(self.fits)
        measured = self.plain(PROBE_TYPE).kl - sum(expected[n_pair:])
        return min(max(measured / max(sum(expected[:n_pair]), 1e-30), 0.1), 10.0)

    #
    # plans
    #

    def plan_of(self, choices: Sequence[Choice], retain: float = 0.0) -> Plan:
        """The plan of choices, one for each pair and each layer that is in none."""
        pairs = [
            fit.format(choice.k, choice.v)
            for fit, choice in zip(self.fits, choices, strict=False)
            if choice.k is not None and choice.v is not None
        ]
        groups = [(fit.a, fit.b) for fit in self.fits] + [(one.layer,) for one in self.singles]
        types = {
            layer: names
            for group, choice in zip(groups, choices, strict=True)
            if choice.types
            for layer, names in zip(group, choice.types, strict=True)
        }
        common = [
            Counter(names[side] for names in types.values()).most_common(1)[0][0] if types else "f16"
            for side in (0, 1)
        ]
        return replace(
            self.base,
            rope_block=self.base.rope_block if pairs else 0,
            type_k=common[0],
            type_v=common[1],
            plain=tuple(
                PlainLayer(layer, *types[layer]) for layer in sorted(types) if list(types[layer]) != common
            ),
            groups=tuple(pairs),
            retain=retain,
            pool_type=POOL_TYPE if retain or (pairs and self.base.window and self.can_retain()) else "f16",
            window=self.base.window if pairs else 0,
        )

    def candidates(self) -> list[Candidate]:
        """What can be chosen for each pair, and for each layer that is in none."""
        found = []
        known = self.sensitivities
        for fit, k, v in zip(self.fits, known.k, known.v, strict=False):
            n = self.shape.layers[fit.a].n_head_kv
            plain = [self._plain(layer, k * known.plain, v * known.plain) for layer in (fit.a, fit.b)]
            code = Part(fit.k.unit_errors, k, n), Part(fit.v.unit_errors, v, n)
            found.append(Candidate((fit.a, fit.b), tuple(one for one in plain if one), code))
        n_pair = len(self.fits)
        for single, k, v in zip(self.singles, known.k[n_pair:], known.v[n_pair:], strict=True):
            plain_one = self._plain(single.layer, k, v)
            found.append(Candidate((single.layer,), (plain_one,) if plain_one else ()))
        return found

    def _plain(self, number: int, k: float, v: float) -> tuple[PlainPart, PlainPart] | None:
        """What a layer's K and V lose in each type, at these sensitivities."""
        if number not in self.layers:
            return None
        fit, layer = self.layers[number], self.shape.layers[number]
        parts = [
            PlainPart(
                {name: sensitivity * error for name, error in errors.items()},
                {name: GGML_TYPES[name].row_bytes(size) for name in errors},
            )
            for errors, sensitivity, size in ((fit.k, k, layer.n_k), (fit.v, v, layer.n_v))
        ]
        return parts[0], parts[1]

    def plain_types(self) -> list[str]:
        """Those that this model's heads can have."""
        sizes = {size for one in self.shape.attention_layers for size in (one.head_size_k, one.head_size_v)}
        return [name for name in CACHE_TYPES if all(size % GGML_TYPES[name].block == 0 for size in sizes)]

    def coded(self, target: Target, retain: float = 0.0) -> tuple[Plan, list[Choice]] | None:
        """The plan that is expected to lose least within the target, None where none fits, or none has codes."""
        found = self._allocated(self.candidates(), target, retain)
        return found if found and found[0].groups else None

    def mixed(self, target: Target) -> tuple[Plan, list[Choice]] | None:
        """The same without codes."""
        candidates = [replace(one, code=None) for one in self.candidates()]
        return self._allocated(candidates, target) if self.layers else None

    def _allocated(
        self, candidates: Sequence[Candidate], target: Target, retain: float = 0.0
    ) -> tuple[Plan, list[Choice]] | None:
        def small_enough(choices: list[Choice]) -> bool:
            return target.fits(self.shape, self.plan_of(choices, retain))

        found = allocate(candidates, small_enough)
        return (self.plan_of(found[0], retain), found[0]) if found else None

    def best(self, target: Target) -> Found | None:
        """The best, as measured, of plans with codes, with and without retained tokens, and with types by layer."""
        tried = [
            ("codes", "the least measured loss", self.coded(target) if self.fits else None),
            (
                "codes and retained tokens",
                "the least measured loss; retained tokens lower it",
                self.coded(target, RETAIN) if self.fits and self.can_retain() else None,
            ),
            ("types by layer", "plain types by layer measure best", self.mixed(target)),
        ]
        best: Found | None = None
        for name, why, found in tried:
            if found is None:
                continue
            measured = self.measure(found[0], "measure", f"{name}, {target}")
            if best is None or measured.kl < best.measured.kl:
                uniform_types = not found[0].groups and not found[0].plain
                best = Found(found[0], None if uniform_types else found[1], measured, why)
        return best

    def can_retain(self) -> bool:
        return POOL_TYPE in self.plain_types()

    def plain_plan(self, name: str) -> Plan:
        return replace(self.base, rope_block=0, type_k=name, type_v=name, pool_type="f16", window=0)

    def choose(self, target: Target, refine: int = 0) -> Found:
        """The plan for a target, at no more loss than any plain cache that fits it."""
        found = self._choose(target)
        for _ in range(refine):
            if found.choices is None:
                break
            before = self.sensitivities
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
        best = self.best(target)
        for name in self.plain_types():
            plan = self.plain_plan(name)
            if target.fits(self.shape, plan):
                measured = self.measure(plan, "measure", name)
                if best is None or measured.kl <= best.measured.kl:
                    best = Found(
                        plan, None, measured, f"plain {name} measures no worse than anything else here"
                    )
        if best is not None:
            return best
        self.refuse(target)
        smallest = min(self.plain_types(), key=lambda one: GGML_TYPES[one].row_bytes(32))
        plan = self.plain_plan(smallest)
        self.on_note(f"{target} can't be had, as no layers of this model can be paired: {self.least()}")
        return Found(plan, None, self.measure(plan, "measure", smallest), "the smallest plain type")

    def refuse(self, target: Target) -> None:
        """Raise where nothing fits. A model whose layers can't be paired gets the smallest there is, all the same."""
        if self.fits and not any(target.fits(self.shape, plan) for plan in self.least_plans()):
            raise MiniCacheError(f"{target} can't be had: {self.least()}{self.least_window(target)}")

    def least_plans(self) -> list[Plan]:
        """The smallest plans, without a thought of what they lose."""
        plans = [self.plain_plan(name) for name in self.plain_types()]
        if self.fits:
            empty = [Choice(Layout(), Layout()) for _ in self.fits]
            types = [Choice(types=((name, name),)) for name in self.plain_types()]
            plans += [self.plan_of([*empty, *[one] * len(self.singles)]) for one in types]
        return plans

    def least(self) -> str:
        """How small this model's cache can get."""
        most = max(ratio(self.shape, plan) for plan in self.least_plans())
        return f"its cache can be made at most {most:.2f} times smaller"

    def least_window(self, target: Target) -> str:
        """What a budget pays for the window."""
        if target.budget is None or not self.base.window:
            return ""
        coded = self.plan_of(self.exact())
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
        for _ in range(ROUNDS if self.layers else 0):
            middle = (low * high) ** 0.5
            found = self.best(Target(ratio=middle))
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
    """What was chosen for each pair and each layer that is in none, and why."""
    if found.choices is None:
        return []
    sensitivities = planner.sensitivities
    candidates = planner.candidates()
    losses = [one.loss(choice) for one, choice in zip(candidates, found.choices, strict=True)]
    rows = []
    for index, (candidate, choice, loss) in enumerate(zip(candidates, found.choices, losses, strict=True)):
        layer = planner.shape.layers[candidate.layers[0]]
        row: dict[str, Any] = {
            "layers": list(candidate.layers),
            "kind": "code" if choice.coded else "plain",
            "types": [list(names) for names in choice.types] or None,
            "sensitivity_k": sensitivities.k[index],
            "sensitivity_v": sensitivities.v[index],
            "share": loss / sum(losses) if sum(losses) else 0.0,
        }
        for kind, layout, size in (("k", choice.k, layer.head_size_k), ("v", choice.v, layer.head_size_v)):
            part = getattr(planner.fits[index], kind) if layout else None
            row |= {
                f"bits_{kind}": bits(layout, size) if layout else None,
                f"units_{kind}": list(layout.units) if layout else None,
                f"error_{kind}": relative_error(part.error(layout), part.error(Layout())) if part else None,
            }
        rows.append(row)
    return rows


def relative_error(error: float, whole: float) -> float:
    return error / whole if whole else 0.0

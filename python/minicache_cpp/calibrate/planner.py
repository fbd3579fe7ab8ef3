"""Choosing a plan: how the layers are grouped, which groups are coded with which widths, which layers stay plain in
which types, and whether tokens are retained.

What errors of each layer do to the model's output is measured on the model (sensitivity.py), and is in the weights that
codes are fitted with. One price for a byte then settles all widths and types (allocation.py). Plans and plain caches
are compared by what they measure, so that no plan is worse than a plain cache of at most its size.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cache.code_format import GroupFormat, Kind, Layout
from ..cache.plan import PlainLayer, Plan
from ..cache.plan_file import write_plan
from ..cache.settings import CacheSpec
from ..cache.size import kv_bytes, plan_bytes, plan_fixed_bytes, plan_window_bytes
from ..errors import MiniCacheError
from ..host.units import mib
from ..modelfile.ggml_types import CACHE_TYPES, GGML_TYPES
from ..modelfile.shape import ModelShape
from .allocation import Candidate, Choice, Part, PlainPart, allocate
from .code_fit import PartFit
from .group_fit import GroupFit, LayerWeights, Source, cut_into_groups, fit_group
from .meter import Measured, Meter
from .plain_fit import PlainFit
from .sensitivity import Sensitivities, measure_sensitivities, widths_like

SIZED_AT = 4096  # tokens at which a ratio is taken: a few bytes are there once for many tokens
COMPARED_TYPE = "q4_0"  # tells what plain types lose beside codes
RETAIN = 1 / 128  # tried beside retaining nothing
POOL_TYPE = "q8_0"  # of what is retained, and of the window: f16 where heads can't have that
ROUNDS = 7  # of the search for --max-kl
LEAST_GAIN = 0.9  # what larger groups may lose, of what smaller ones do, to be chosen


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
            return plan_bytes(shape, plan, self.n_ctx) <= self.budget
        return self.ratio is None or ratio(shape, plan) >= self.ratio


@dataclass(frozen=True)
class Found:
    """A plan, with what was measured and expected of it."""

    plan: Plan
    choices: list[Choice] | None  # of each group; None where all layers are plain in one type
    measured: Measured
    why: str
    fits: Sequence[GroupFit] = ()  # of the choices

    def n_bytes(self, shape: ModelShape, n_ctx: int) -> int:
        return plan_bytes(shape, self.plan, n_ctx)


class Planner:
    """Plans for a model, from what was captured of it.

    Without fits of layers in plain types all layers that are not coded have one type.
    """

    def __init__(
        self,
        shape: ModelShape,
        source: Source,
        weights: LayerWeights,  # of all layers that may be coded
        meter: Meter,
        base: Plan,  # without groups and types, with the window that plans with groups have
        folder: Path,
        on_note: Callable[[str], None] = lambda text: None,
        plain: Sequence[PlainFit] = (),
        group_sizes: Sequence[int] = (2,),
    ) -> None:
        self.shape, self.source, self.weights, self.meter = shape, source, weights, meter
        self.base, self.folder, self.on_note = base, folder, on_note
        self.layers: Mapping[int, PlainFit] = {one.layer: one for one in plain}
        self.group_sizes = group_sizes
        self.sensitivities = Sensitivities({}, {})
        self.fitted: dict[tuple[int, ...], GroupFit] = {}

    #
    # measuring
    #

    def write(self, plan: Plan, path: Path, fits: Sequence[GroupFit]) -> Path:
        by_layers = {fit.layers: fit for fit in fits}
        codecs = {
            group.first: by_layers[group.layers].codec(group.layout_k, group.layout_v)
            for group in plan.groups
        }
        write_plan(path, plan, codecs)
        return path

    def measure(self, plan: Plan, kind: str, name: str, fits: Sequence[GroupFit] = ()) -> Measured:
        """What a plan costs; a plain one is measured as a plain cache."""
        if not plan.groups and not plan.plain:
            return self.meter.measure(CacheSpec(plan.type_k, plan.type_v), kind, name)
        path = self.write(replace(plan, notes={}), self.folder / f"tried-{os.getpid()}.gguf", fits)
        return self.meter.measure(CacheSpec.parse(str(path)), kind, name)

    def plain(self, name: str, kind: str = "measure") -> Measured:
        return self.meter.measure(CacheSpec(name, name), kind, name)

    #
    # sensitivities
    #

    def probe(self, like: Found | None = None) -> None:
        """Measure the sensitivities, with each layer in a code of its own: at 3 bits, or at errors as in a plan."""
        singles = {layer: fit_group(self.source, self.weights, (layer,)) for layer in self.weights}
        widths: dict[tuple[Kind, int], int] = {}
        if like is not None:
            for fit, choice in zip(like.fits, like.choices or (), strict=True):
                widths |= widths_like(fit, choice, singles) if choice.coded else {}

        def measure(choices: Sequence[Choice], name: str) -> float:
            fits = list(singles.values())
            return self.measure(self.plan_of(fits, choices), "measure", name, fits).kl

        self.sensitivities = measure_sensitivities(list(singles.values()), measure, widths)
        self.sensitivities = replace(self.sensitivities, plain=self._plain_factor())
        self.fitted = {}

    def _plain_factor(self) -> float:
        """All layers in one type tell how well the sensitivities, which are those of codes, fit plain types."""
        if not self.layers or COMPARED_TYPE not in self.plain_types():
            return 1.0
        of = self.sensitivities.of
        expected = sum(
            of["k", layer] * fit.k[COMPARED_TYPE] + of["v", layer] * fit.v[COMPARED_TYPE]
            for layer, fit in self.layers.items()
        )
        return min(max(self.plain(COMPARED_TYPE).kl / max(expected, 1e-30), 0.1), 10.0)

    def grouping(self, most: int) -> list[GroupFit]:
        """Codes of groups of at most so many layers, fitted with what was measured of their sensitivities."""
        weights = self.sensitivities.scaled(self.weights)
        groups = cut_into_groups(self.shape, self.source.samples.ropes, most) if weights else []
        for layers in groups:
            if layers not in self.fitted:
                self.fitted[layers] = fit_group(self.source, weights, layers)
        return [self.fitted[layers] for layers in groups]

    #
    # plans
    #

    def plan_of(self, fits: Sequence[GroupFit], choices: Sequence[Choice], retain: float = 0.0) -> Plan:
        """The plan of choices, one for each group."""
        groups = [
            fit.format(choice.k, choice.v)
            for fit, choice in zip(fits, choices, strict=True)
            if choice.k is not None and choice.v is not None
        ]
        types = {
            layer: names
            for fit, choice in zip(fits, choices, strict=True)
            if choice.types
            for layer, names in zip(fit.layers, choice.types, strict=True)
        }
        common = [
            Counter(names[side] for names in types.values()).most_common(1)[0][0] if types else "f16"
            for side in (0, 1)
        ]
        return replace(
            self.base,
            rope_block=self.base.rope_block if groups else 0,
            type_k=common[0],
            type_v=common[1],
            plain=tuple(
                PlainLayer(layer, *types[layer]) for layer in sorted(types) if list(types[layer]) != common
            ),
            groups=tuple(groups),
            retain=retain,
            pool_type=POOL_TYPE if retain or (groups and self.base.window and self.can_retain()) else "f16",
            window=self.base.window if groups else 0,
        )

    def candidates(self, fits: Sequence[GroupFit]) -> list[Candidate]:
        """What can be chosen for each group."""
        found = []
        for fit in fits:
            n_head, n_layer = self.shape.layers[fit.first].n_head_kv, len(fit.layers)
            plain = [self._plain(layer) for layer in fit.layers]
            code = Part(fit.k.unit_errors, n_head, n_layer), Part(fit.v.unit_errors, n_head, n_layer)
            found.append(Candidate(fit.layers, tuple(one for one in plain if one), code))
        return found

    def _plain(self, number: int) -> tuple[PlainPart, PlainPart] | None:
        """What a layer's K and V are expected to lose in each type."""
        if number not in self.layers:
            return None
        fit, layer, known = self.layers[number], self.shape.layers[number], self.sensitivities
        kinds: tuple[tuple[Kind, Mapping[str, float], int], ...] = (
            ("k", fit.k, layer.n_k),
            ("v", fit.v, layer.n_v),
        )
        parts = [
            PlainPart(
                {name: known.of[kind, number] * known.plain * error for name, error in errors.items()},
                {name: GGML_TYPES[name].row_bytes(size) for name in errors},
            )
            for kind, errors, size in kinds
        ]
        return parts[0], parts[1]

    def plain_types(self) -> list[str]:
        """Those that this model's heads can have."""
        sizes = {size for one in self.shape.attention_layers for size in (one.head_size_k, one.head_size_v)}
        return [name for name in CACHE_TYPES if all(size % GGML_TYPES[name].block == 0 for size in sizes)]

    def coded(
        self, fits: Sequence[GroupFit], target: Target, retain: float = 0.0
    ) -> tuple[Plan, list[Choice]] | None:
        """The plan that is expected to lose least within the target, None where none fits, or none has codes."""
        found = self._allocated(fits, self.candidates(fits), target, retain)
        return found if found and found[0].groups else None

    def mixed(self, fits: Sequence[GroupFit], target: Target) -> tuple[Plan, list[Choice]] | None:
        """The same without codes."""
        candidates = [replace(one, code=None) for one in self.candidates(fits)]
        return self._allocated(fits, candidates, target) if self.layers else None

    def _allocated(
        self,
        fits: Sequence[GroupFit],
        candidates: Sequence[Candidate],
        target: Target,
        retain: float = 0.0,
    ) -> tuple[Plan, list[Choice]] | None:
        def small_enough(choices: list[Choice]) -> bool:
            return target.fits(self.shape, self.plan_of(fits, choices, retain))

        found = allocate(candidates, small_enough)
        return (self.plan_of(fits, found[0], retain), found[0]) if found else None

    def best(self, target: Target) -> Found | None:
        """The best, as measured, of plans with codes, with and without retained tokens, and with types by layer."""
        best: Found | None = None
        for most in self.group_sizes if self.weights else ():
            for one in self._of_groups(most, target):
                # attention reads a group's whole row for each of its layers: larger groups must be worth it
                worth = LEAST_GAIN if best and len(one.plan.groups) < len(best.plan.groups) else 1.0
                if best is None or one.measured.kl < worth * best.measured.kl:
                    best = one
        return best

    def _of_groups(self, most: int, target: Target) -> Iterator[Found]:
        fits = self.grouping(most)
        called = f"codes of {most} layers" if len(self.group_sizes) > 1 else "codes"
        tried = [(called, "the least measured loss", self.coded(fits, target))]
        if self.can_retain():
            why = "the least measured loss; retained tokens lower it"
            tried.append((f"{called} and retained tokens", why, self.coded(fits, target, RETAIN)))
        if most == self.group_sizes[0]:
            tried.append(("types by layer", "plain types by layer measure best", self.mixed(fits, target)))
        for name, why, found in tried:
            if found is None:
                continue
            plan, choices = found
            measured = self.measure(plan, "measure", f"{name}, {target}", fits)
            uniform_types = not plan.groups and not plan.plain
            yield Found(plan, None if uniform_types else choices, measured, why, fits)

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
            before = self.sensitivities, self.fitted
            self.probe(found)
            again = self._choose(target)
            smaller = ratio(self.shape, again.plan) > ratio(self.shape, found.plan)
            better = smaller if target.max_kl is not None else again.measured.kl < found.measured.kl
            if not better:
                self.sensitivities, self.fitted = before
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
        self.on_note(f"{target} can't be had, as no layers of this model can be coded: {self.least()}")
        return Found(plan, None, self.measure(plan, "measure", smallest), "the smallest plain type")

    def refuse(self, target: Target) -> None:
        """Raise where nothing fits. A model whose layers can't be coded gets the smallest there is, all the same."""
        if self.weights and not any(target.fits(self.shape, plan) for plan in self.least_plans()):
            raise MiniCacheError(f"{target} can't be had: {self.least()}{self.least_window(target)}")

    def least_plans(self) -> list[Plan]:
        """The smallest plans, without a thought of what they lose."""
        plans = [self.plain_plan(name) for name in self.plain_types()]
        if self.weights:
            plans.append(self._uniform_plan(Layout()))
        return plans

    def _uniform_plan(self, layout: Layout) -> Plan:
        """All layers as codes of this layout, in the largest groups there may be."""
        ropes = self.source.samples.ropes
        groups = []
        for layers in cut_into_groups(self.shape, ropes, max(self.group_sizes)):
            one = self.shape.layers[layers[0]]
            groups.append(
                GroupFormat(layers, one.n_head_kv, one.head_size_k, one.head_size_v, layout, layout)
            )
        pool_type = POOL_TYPE if self.base.window and self.can_retain() else "f16"
        return replace(self.base, groups=tuple(groups), pool_type=pool_type)

    def least(self) -> str:
        """How small this model's cache can get."""
        most = max(ratio(self.shape, plan) for plan in self.least_plans())
        return f"its cache can be made at most {most:.2f} times smaller"

    def least_window(self, target: Target) -> str:
        """What a budget pays for the window."""
        if target.budget is None or not self.base.window:
            return ""
        taken = mib(plan_window_bytes(self.shape, self._uniform_plan(Layout())))
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


def ratio(shape: ModelShape, plan: Plan) -> float:
    """f16 bytes per cached token over the plan's, without what is allocated once."""
    n_bytes = plan_bytes(shape, plan, SIZED_AT) - plan_fixed_bytes(shape, plan)
    return kv_bytes(shape, CacheSpec("f16", "f16"), SIZED_AT) / n_bytes


def bits(layout: Layout, n_layer: int, size: int) -> float:
    """Bits per value of the heads of this size of so many layers."""
    return layout.bits / (n_layer * size)


def choice_table(planner: Planner, found: Found) -> list[dict[str, Any]]:
    """What was chosen for each group, and why."""
    if found.choices is None:
        return []
    whole = planner.sensitivities.whole
    candidates = planner.candidates(found.fits)
    losses = [one.loss(choice) for one, choice in zip(candidates, found.choices, strict=True)]
    rows = []
    for fit, choice, loss in zip(found.fits, found.choices, losses, strict=True):
        layer, n_layer = planner.shape.layers[fit.first], len(fit.layers)
        row: dict[str, Any] = {
            "layers": list(fit.layers),
            "kind": "code" if choice.coded else "plain",
            "types": [list(names) for names in choice.types] or None,
            "sensitivity_k": [whole["k", number] for number in fit.layers],
            "sensitivity_v": [whole["v", number] for number in fit.layers],
            "share": loss / sum(losses) if sum(losses) else 0.0,
        }
        for kind, layout, part, size in (
            ("k", choice.k, fit.k, layer.head_size_k),
            ("v", choice.v, fit.v, layer.head_size_v),
        ):
            row |= {
                f"bits_{kind}": bits(layout, n_layer, size) if layout else None,
                f"units_{kind}": list(layout.units) if layout else None,
                f"error_{kind}": relative_error(part, layout) if layout else None,
                f"layer_error_{kind}": layer_errors(part, layout, n_layer) if layout else None,
            }
        rows.append(row)
    return rows


def relative_error(part: PartFit, layout: Layout) -> float:
    """The error of a layout, over that of no code at all."""
    whole = part.error(Layout())
    return part.error(layout) / whole if whole else 0.0


def layer_errors(part: PartFit, layout: Layout, n_layer: int) -> list[float]:
    """The same of each layer by itself."""
    pairs = zip(part.layer_errors(layout, n_layer), part.layer_errors(Layout(), n_layer), strict=True)
    return [float(error / whole) if whole else 0.0 for error, whole in pairs]

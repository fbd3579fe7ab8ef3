"""Makes plans: how the layers are grouped, which groups are coded with which widths, and which layers stay plain in
which types.

What an error in each layer does to the model's output is measured on the model (sensitivity.py), and scales the
weights that codes are fitted with. One price for a byte then settles all widths and types (allocation.py). search.py
measures the resulting plans and plain caches and compares them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..cache.code_format import Kind
from ..cache.plan import Plan
from ..modelfile.ggml_types import GGML_TYPES
from .allocation import Candidate, Choice, Chosen, Part, PlainPart, Region, allocate
from .code_fit import CHOICES
from .group_fit import GroupFit, LayerWeights, Source, fit_group, fits_side_by_side
from .grouping import Grouping, cut_regions
from .plain_fit import PlainFit
from .plans import PlanBuilder
from .sensitivity import Sensitivities, measure_sensitivities, widths_like
from .target import Target
from .trials import Trials

# the cache type that is measured to see what plain types lose beside codes
COMPARED_TYPE = "q4_0"
# The window is f16 where q8_0 would lose more of all tokens than this part of what the codes lose of them. Of
# smollm2-135m it would be a fiftieth. Of qwen2.5-coder-0.5b, whose biases make a few numbers of K far larger than the
# others, it was an eighth, and two fifths of the plan's whole loss, because the nearest tokens are read most.
MOST_OF_WINDOW = 0.05


@dataclass(frozen=True)
class Planned:
    """A plan that is expected to lose least, not measured yet."""

    plan: Plan
    # one for each group
    fits: Sequence[GroupFit]
    choices: Sequence[Choice]
    # the loss that is expected
    loss: float


@dataclass(frozen=True)
class Planner:
    """Makes plans for a model from what was captured and measured of it.

    A planner that is made without sensitivities knows nothing of the model's output; knowing() and measured() return
    one that does.
    """

    builder: PlanBuilder
    source: Source
    # the weights of all layers that may be coded
    weights: LayerWeights
    trials: Trials
    # what plain types lose, by layer; without it, all layers that are not coded have one type
    plain: Mapping[int, PlainFit] = field(default_factory=dict)
    sensitivities: Sensitivities = field(default_factory=lambda: Sensitivities({}, {}))
    # the groups that were fitted with these sensitivities, by their layers
    fitted: dict[tuple[int, ...], GroupFit] = field(default_factory=dict)

    def singles(
        self, widths: Collection[int] = CHOICES, without: Collection[int] = ()
    ) -> dict[int, GroupFit]:
        """The codes of the layers by themselves, for these widths, fitted to all chunks but those of these numbers."""
        groups = [(layer,) for layer in self.weights]
        source = replace(self.source, samples=self.source.samples.without(without))
        fits = replace(self, source=source)._fits(self.weights, groups, widths)
        return {fit.first: fit for fit in fits}

    def _fits(
        self,
        weights: LayerWeights,
        groups: Sequence[tuple[int, ...]],
        widths: Collection[int] = CHOICES,
    ) -> Iterator[GroupFit]:
        """The codes of groups."""

        def fit(layers: tuple[int, ...]) -> GroupFit:
            return fit_group(self.source, weights, layers, widths)

        return fits_side_by_side(fit, groups, self.trials.meter.threads)

    def knowing(self, found: Sensitivities) -> Planner:
        """The same planner with these sensitivities; what plain types lose beside them is measured."""
        return replace(self, sensitivities=replace(found, plain=self._plain_factor(found)), fitted={})

    def measured(self, like: Sequence[tuple[GroupFit, Choice]] = ()) -> Planner:
        """The same planner with sensitivities that are measured with a whole cache for each layer's K and V.

        They are measured with each layer in a code of its own, at 3 bits, or at about the errors that the layers have
        in `like`, the groups of a plan and their choices.
        """
        singles = self.singles()
        fits = list(singles.values())
        widths: dict[tuple[Kind, int], int] = {}
        for fit, choice in like:
            widths |= widths_like(fit, choice, singles) if choice.coded else {}

        def measure(choices: Sequence[Choice], name: str) -> float:
            return self.trials.measure(self.builder.of(fits, choices), "measure", name, fits).kl

        return self.knowing(measure_sensitivities(fits, measure, widths))

    def _plain_factor(self, found: Sensitivities) -> float:
        """What all layers in one plain type lose, as measured, over what the sensitivities of codes predict."""
        if not self.plain or COMPARED_TYPE not in self.builder.types():
            return 1.0
        expected = sum(
            found.of["k", layer] * fit.k[COMPARED_TYPE] + found.of["v", layer] * fit.v[COMPARED_TYPE]
            for layer, fit in self.plain.items()
        )
        measured = self.trials.measure(self.builder.plain_growing(COMPARED_TYPE), "measure", COMPARED_TYPE)
        return min(max(measured.kl / max(expected, 1e-30), 0.1), 10.0)

    def fit_groups(self, grouping: Grouping) -> list[list[list[GroupFit]]]:
        """The codes of a grouping's groups, fitted with the sensitivities: region, way to cut it, group."""
        weights = self.sensitivities.scaled(self.weights)
        cuts = cut_regions(self.builder.shape, self.builder.ropes, grouping.sizes) if weights else []
        groups = [layers for ways in cuts for way in ways for layers in way]
        new = [layers for layers in dict.fromkeys(groups) if layers not in self.fitted]
        self.fitted.update((fit.layers, fit) for fit in self._fits(weights, new))
        return [[[self.fitted[layers] for layers in way] for way in ways] for ways in cuts]

    def candidates(self, fits: Sequence[GroupFit]) -> list[Candidate]:
        """The ways to keep each group: as a code, and plain where what plain types lose is known."""
        found = []
        for fit in fits:
            plain = [self._plain_parts(layer) for layer in fit.layers]
            code = Part(fit.k.unit_errors, len(fit.layers)), Part(fit.v.unit_errors, len(fit.layers))
            found.append(Candidate(fit.layers, tuple(one for one in plain if one), code))
        return found

    def _plain_parts(self, number: int) -> tuple[PlainPart, PlainPart] | None:
        """What a layer's K and V are expected to lose in each type."""
        if number not in self.plain:
            return None
        fit, layer, known = self.plain[number], self.builder.shape.layers[number], self.sensitivities
        kinds: tuple[tuple[Kind, Mapping[str, float], int], ...] = (
            ("k", fit.k, layer.n_k),
            ("v", fit.v, layer.n_v),
        )
        k, v = (
            PlainPart(
                {name: known.of[kind, number] * known.plain * error for name, error in errors.items()},
                {name: GGML_TYPES[name].row_bytes(size) for name in errors},
                size,
            )
            for kind, errors, size in kinds
        )
        return k, v

    def coded(self, grouping: Grouping, target: Target) -> Planned | None:
        """The plan with codes that is expected to cost least, in loss and time, within the target.

        None where there is none.
        """
        found = self._allocated(
            [Region([self.candidates(way) for way in ways]) for ways in self.fit_groups(grouping)],
            target,
            grouping.time,
        )
        return found if found and found.plan.groups else None

    def mixed(self, grouping: Grouping, target: Target) -> Planned | None:
        """The plan of plain types by layer that is expected to lose least within the target; None where none fits."""
        if not self.plain:
            return None
        groups = [group for ways in self.fit_groups(grouping) for group in ways[0]]
        return self._allocated(
            [Region([[replace(one, code=None)]]) for one in self.candidates(groups)], target
        )

    def _allocated(self, regions: Sequence[Region], target: Target, time: float = 0.0) -> Planned | None:
        builder = self.builder

        def split(chosen: Chosen) -> tuple[list[GroupFit], list[Choice]]:
            return [self.fitted[one.layers] for one, _ in chosen], [choice for _, choice in chosen]

        def small_enough(chosen: Chosen) -> bool:
            return target.fits(builder.shape, builder.of(*split(chosen)))

        found = allocate(regions, small_enough, time)
        if found and self._window_loss() > MOST_OF_WINDOW * found[1]:
            builder = replace(builder, exact_window=True)
            found = allocate(regions, small_enough, time)
        if found is None:
            return None
        fits, choices = split(found[0])
        return Planned(builder.of(fits, choices), fits, choices, found[1])

    def _window_loss(self) -> float:
        """The loss that is expected if every token were kept as the window's tokens usually are."""
        return sum(
            self.sensitivities.of["k", layer] * fit.window_k
            + self.sensitivities.of["v", layer] * fit.window_v
            for layer, fit in self.plain.items()
        )

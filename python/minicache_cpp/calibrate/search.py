"""Finds the plan for a target, by measuring: no plan is worse than a plain cache of at most its size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..cache.code_format import Layout
from ..cache.plan import Plan
from ..cache.size import plan_bytes, plan_window, plan_window_bytes
from ..errors import MiniCacheError
from ..host.units import mib
from ..modelfile.ggml_types import GGML_TYPES
from .allocation import Choice
from .group_fit import GroupFit
from .grouping import Grouping
from .meter import Measured
from .planner import Planner
from .target import Target, ratio

# steps of the bisection for --max-kl, and the largest ratio that it tries
ROUNDS = 7
LARGEST_RATIO = 32.0
# larger groups are chosen only where they lose at most this share of what smaller ones lose
LEAST_GAIN = 0.9
# types by layer are measured only where they are expected to lose at most this many times as much as codes
LIKELY = 2.0


@dataclass(frozen=True)
class Found:
    """A measured plan."""

    plan: Plan
    measured: Measured
    why: str
    # one for each group, and the fits that they belong to; no choices where all layers are plain in one type
    choices: Sequence[Choice] | None = None
    fits: Sequence[GroupFit] = ()


class Search:
    """Searches for plans among codes in these groupings, types by layer, and plain types."""

    def __init__(
        self,
        planner: Planner,
        groupings: Sequence[Grouping],
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        # replaced by one with better sensitivities where refining finds a better plan
        self.planner = planner
        self.groupings, self.on_note = groupings, on_note
        self.builder, self.trials, self.shape = planner.builder, planner.trials, planner.builder.shape

    def choose(self, target: Target, refine: int = 0) -> Found:
        """The plan for a target, which loses no more than any plain cache that fits it.

        Up to `refine` times the sensitivities are measured again, at the errors of the plan that was found, for as
        long as that finds a better one.
        """
        found = self._choose(target)
        for _ in range(refine):
            if found.choices is None:
                break
            before = self.planner
            self.planner = before.measured(list(zip(found.fits, found.choices, strict=True)))
            again = self._choose(target)
            smaller = ratio(self.shape, again.plan) > ratio(self.shape, found.plan)
            better = smaller if target.max_kl is not None else again.measured.kl < found.measured.kl
            if not better:
                self.planner = before
                break
            found = again
        return found

    def _choose(self, target: Target) -> Found:
        if target.max_kl is not None:
            return self._smallest(target.max_kl)
        best = self._best(target)
        for name in self.builder.types():
            plan = self.builder.plain(name)
            if target.fits(self.shape, plan):
                measured = self.trials.measure(plan, "measure", name)
                if best is None or measured.kl <= best.measured.kl:
                    best = Found(plan, measured, f"plain {name} is at least as good as every other candidate")
        if best is not None:
            return best
        self.refuse(target)
        smallest = min(self.builder.types(), key=lambda one: GGML_TYPES[one].row_bytes(32))
        plan = self.builder.plain(smallest)
        self.on_note(
            f"cannot reach {target}: no layer of this model can be coded, and {self._how_small(target)}"
        )
        return Found(plan, self.trials.measure(plan, "measure", smallest), "the smallest plain type")

    def _best(self, target: Target) -> Found | None:
        """The plan that measures best, of codes and of plain types by layer."""
        best: Found | None = None
        for grouping in self.groupings if self.planner.weights else ():
            for one in self._tried(grouping, target):
                # attention reads a group's whole row for each of its layers: larger groups must be worth it
                worth = LEAST_GAIN if best and len(one.plan.groups) < len(best.plan.groups) else 1.0
                if best is None or one.measured.kl < worth * best.measured.kl:
                    best = one
        return best

    def _tried(self, grouping: Grouping, target: Target) -> Iterator[Found]:
        """Measures the plans of a grouping; types by layer only with the first one."""
        planner = self.planner
        coded = planner.coded(grouping, target)
        called = str(grouping) if len(self.groupings) > 1 else "codes"
        tried = [(called, "the least measured loss", coded)]
        if grouping == self.groupings[0]:
            mixed = planner.mixed(grouping, target)
            if mixed and (coded is None or mixed.loss <= LIKELY * coded.loss):
                tried.append(("types by layer", "plain types by layer measure best", mixed))
        for name, why, planned in tried:
            if planned is None:
                continue
            plan = planned.plan
            measured = self.trials.measure(plan, "measure", f"{name}, {target}", planned.fits)
            uniform_types = not plan.groups and not plan.plain
            yield Found(plan, measured, why, None if uniform_types else planned.choices, planned.fits)

    def _smallest(self, max_kl: float) -> Found:
        """The smallest plan that measures at most `max_kl`, found by bisection of the ratio."""
        best: Found | None = None
        for name in self.builder.types():
            plan = self.builder.plain(name)
            measured = self.trials.measure(plan, "measure", name)
            if measured.kl <= max_kl and self._is_smaller(plan, best):
                best = Found(plan, measured, f"plain {name} is the smallest that loses no more")
        low, high = 1.0, LARGEST_RATIO
        for _ in range(ROUNDS if self.planner.weights else 0):
            middle = (low * high) ** 0.5
            found = self._best(Target(ratio=middle))
            if found is None or found.measured.kl > max_kl:
                high = middle
                continue
            low = middle
            if self._is_smaller(found.plan, best):
                best = found
        if best is None:
            raise MiniCacheError(f"no cache of this model has a KL divergence of at most {max_kl:g}")
        return best

    def _is_smaller(self, plan: Plan, best: Found | None) -> bool:
        return best is None or ratio(self.shape, plan) > ratio(self.shape, best.plan)

    def refuse(self, target: Target) -> None:
        """Raises MiniCacheError if no plan fits the target, unless no layer can be coded.

        In that case choose() takes the smallest plain type, and notes that it misses the target.
        """
        if self.planner.weights and not any(target.fits(self.shape, plan) for plan in self._smallest_plans()):
            raise MiniCacheError(f"cannot reach {target}: {self._how_small(target)}")

    def _smallest_plans(self) -> list[Plan]:
        """The smallest plan of each kind, whatever it loses."""
        plans = [self.builder.plain(name) for name in self.builder.types()]
        if self.planner.weights:
            plans.append(self._empty_codes())
        return plans

    def _empty_codes(self) -> Plan:
        """Codes without coefficients, in the largest groups, which leaves magnitudes, codecs and the window."""
        return self.builder.uniform(Layout(), max(size for one in self.groupings for size in one.sizes))

    def _how_small(self, target: Target) -> str:
        """The size of the smallest plan, in the target's terms, and what of a budget its window takes."""
        plans = self._smallest_plans()
        if target.budget is None:
            most = max(ratio(self.shape, plan) for plan in plans)
            return f"the smallest plan is {most:.2f} times smaller than an f16 cache"
        least = min(plan_bytes(self.shape, plan, target.n_ctx) for plan in plans)
        text = f"the smallest plan takes {mib(least)}"
        window = plan_window(self.builder.template, target.n_ctx)
        if window and self.planner.weights:
            taken = mib(plan_window_bytes(self.shape, self._empty_codes(), window))
            text += f"; its window of {window} tokens takes {taken}, and --window 0 leaves it out"
        return text

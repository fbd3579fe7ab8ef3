"""Tries plans out: writes them to a file, and measures what a cache that uses them loses."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..cache.plan import Plan
from ..cache.settings import CacheSpec, MiniCache
from .group_fit import GroupFit
from .meter import Measured, Meter
from .plans import write_fitted


@dataclass(frozen=True)
class Trials:
    meter: Meter
    # where the file of the plan that is tried lies
    folder: Path

    def measure(self, plan: Plan, kind: str, name: str, fits: Sequence[GroupFit] = ()) -> Measured:
        """What a plan loses on the chunks of a kind, "measure" or "check"; `name` is for the progress line.

        `fits` are those of its groups. A plan of one type for all layers is measured as a plain cache.
        """
        return self.meter.measure(self._spec(plan, fits), kind, name)

    def _spec(self, plan: Plan, fits: Sequence[GroupFit]) -> CacheSpec:
        if not plan.groups and not plan.plain:
            return CacheSpec(plan.type_k, plan.type_v)
        path = self.folder / f"tried-{os.getpid()}.gguf"
        write_fitted(path, replace(plan, notes={}), fits, self.meter.threads)
        return CacheSpec.of(MiniCache(plan=path))

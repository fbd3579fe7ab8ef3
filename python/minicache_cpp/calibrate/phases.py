"""How far a calibration is: each phase has a share of the whole, by the tokens that the model reads in it."""

from __future__ import annotations

from collections.abc import Mapping

from ..host.progress import Progress
from .material import Material
from .options import Options
from .probes import WAYS, probed_texts, tokens_read

READING, FITTING, PROBING, MEASURING = "reading the text", "fitting", "probing the layers", "measuring"
# what fits take, relative to all that the model reads
FITS = 0.15
# runs of the text to check with: the plan, q8_0, q4_0, and f16 as the reference
RUNS = 4
# and of the text to measure on, where that is another one: f16, q4_0 and the plan
RUNS_BEFORE = 3
# and those of a search for --max-kl, which tries a plan at each of its ratios, and all plain types
RUNS_OF_A_SEARCH = 16


class Phases:
    """Reports to `progress` what share of the work is done.

    `work` has what each phase takes, in any unit, by its name and in their order; `expected_runs` are those of the
    model in the last one.
    """

    def __init__(self, progress: Progress, work: Mapping[str, float], expected_runs: float) -> None:
        self.progress, self.work, self.expected_runs = progress, work, expected_runs
        # the run of the model that is measured now, and those that are complete
        self.run, self.n_run = "", 0

    def __call__(self, phase: str, share: float, detail: str = "") -> None:
        """`share` of a phase is done. Raises CancelledError where the progress is cancelled."""
        names = list(self.work)
        before = sum(self.work[name] for name in names[: names.index(phase)])
        self.progress(
            (before + min(share, 1.0) * self.work[phase]) / max(sum(self.work.values()), 1e-9), phase, detail
        )

    def on_run(self, name: str, share: float) -> None:
        """`share` of a run of the model is done."""
        if name != self.run and self.run:
            self.n_run += 1
        self.run = name
        self(MEASURING, (self.n_run + share) / max(self.expected_runs, self.n_run + 1), name)


def phases_of(progress: Progress, material: Material, options: Options, n_layer: int) -> Phases:
    """The phases of a calibration of a model with so many layers that may be coded."""
    way = WAYS[options.thorough]
    before = 2 * n_layer * options.refine
    before += RUNS_OF_A_SEARCH if options.max_kl is not None else 0
    before += RUNS_BEFORE if options.thorough else 0
    reads = {
        READING: sum(len(chunk.tokens) for chunk in material.fit),
        PROBING: tokens_read(probed_texts(material, way), n_layer, way),
        MEASURING: before * sum(len(chunk.tokens) for chunk in material.measure)
        + RUNS * sum(len(chunk.tokens) for chunk in material.check),
    }
    work = {
        READING: reads[READING],
        FITTING: FITS * sum(reads.values()),
        PROBING: reads[PROBING],
        MEASURING: reads[MEASURING],
    }
    return Phases(progress, work, before + RUNS)

"""A calibration, phase by phase: text, capture, fits, search, check, comparison, plan and report.

Each phase is a function of the job and of what the phases before it returned. A run that is cut off leaves a work
folder with the captured chunks and everything that was measured, and the next run with the same key goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cache.plan import Plan
from ..cache.plan_store import DEFAULT_RATIO, check_plan_path, plan_path
from ..errors import MiniCacheError
from ..host.paths import name_shown, user_path
from ..host.progress import OnProgress, Progress
from ..modelfile.fingerprint import fingerprint
from ..modelfile.gguf_file import GGUFFile, read_gguf
from ..modelfile.shape import ModelShape
from ..models.store import file_of
from ..native.model_shape import model_shape
from ..reading.model import NativeModel
from ..text import bundled
from ..text.vocabulary import Vocabulary
from ..version import __version__
from .capture import NotObservedError, by_head, capture
from .group_fit import LayerWeights, Source, fits_side_by_side
from .grouping import groupings_of
from .layer_weights import layer_weights, output_gains
from .material import FAST, THOROUGH, Chunk, Material, make_material
from .meter import Meter
from .options import Options, check_options, check_output, threads_for
from .phases import FITTING, PROBING, READING, Phases, phases_of
from .plain_fit import PlainFit, fit_plain
from .planner import Planner
from .plans import PlanBuilder, write_fitted
from .probes import WAYS, Floats, probe_sensitivities, probed_texts, usual_sensitivities
from .report import Checked, choice_rows, comparison, notes, report
from .samples import Samples
from .search import Search
from .sensitivity import PROBE_WIDTH
from .target import Target
from .trials import Trials
from .work_place import working

# a model with so many bytes of weights is worth more probes
LARGE = 128 * 2**20
# how many times a plan that misses --max-kl on the check's text is replaced by a stricter one
MOST_RETRIES = 3


@dataclass(frozen=True)
class Job:
    """The model that is calibrated, and how."""

    file: GGUFFile
    shape: ModelShape
    options: Options
    # reports the progress
    phases: Phases
    # prints a line that stays
    note: Callable[[str], None]

    @property
    def threads(self) -> int:
        return self.options.threads or threads_for(self.file)

    @property
    def target(self) -> Target:
        options = self.options
        return Target(options.ratio, options.max_kl, options.budget, options.n_ctx)

    @property
    def n_ctx(self) -> int:
        """The context at which the plan is compared with plain caches, in tokens."""
        return self.options.n_ctx or min(self.shape.n_ctx_train or 4096, 32768)


@dataclass(frozen=True)
class Captured:
    """The model's K and V on the chunks to fit to."""

    samples: Samples
    # the layers that the plan can treat separately; empty if all get one plain type
    layers: Sequence[int]


@dataclass(frozen=True)
class Fits:
    """What was fitted to the captured layers before anything is measured."""

    source: Source
    weights: LayerWeights
    # what each layer loses in plain types, by layer
    plain: Mapping[int, PlainFit]


def calibrate(
    model_path: str | Path | GGUFFile,
    options: Options,
    output: Path | None = None,
    progress: Progress | None = None,
    loaded: NativeModel | None = None,
) -> dict[str, Any]:
    """Makes a model's plan and writes it, to the user's cache directory where there is no `output`.

    loaded: the model, where the caller has it; it stays open.

    Returns what was chosen and measured as a JSON-ready object (report.py). Raises MiniCacheError where an option, the
    text or the path cannot be used, or the target cannot be reached, and CancelledError where `progress` is cancelled.
    What was done until then is kept for the next calibration with the same text.
    """
    check_options(options)
    progress = progress or Progress("calibrate", silent=True)
    file = read_gguf(model_path)
    shape = model_shape(file)
    if shape.unknown:
        raise MiniCacheError(
            f"cannot calibrate {file.path}: {shape.unknown}; use a plain cache, such as --config q8_0"
        )
    if not any(layer.grows for layer in shape.layers):
        raise MiniCacheError(f"cannot calibrate {file.path}: no layer's cache grows with the context")
    place = output or plan_path(file)
    if output is None:
        check_plan_path(place)
    check_output(output)
    with contextlib.closing(progress):
        progress(0, "text")
        material = material_of(file, shape, options)
        n_layer = sum(layer.grows for layer in shape.layers)
        phases = phases_of(progress, material, options, n_layer)
        job = Job(file, shape, options, phases, progress.note)
        with (
            working(work_key(job, material), output, progress) as folder,
            contextlib.nullcontext(loaded) if loaded else NativeModel(file.path, options.gpu_layers) as model,
        ):
            return make_plan(job, material, model, folder, place)


def calibrate_model(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """calibrate() for programs: nothing is printed.

    model: a path, or the name of a model that has been fetched. output: the plan, by default in the user's cache
        directory, where minicache="auto" finds it.
    on_progress: called with (fraction, stage, detail) before every step, in the thread of the caller; if it returns
        False, the calibration ends with CancelledError, and the next one goes on from there.
    options: the fields of Options, such as ratio=8.0, max_kl=0.01, texts=(Path("mine.txt"),) or thorough=True; without
        a target, the ratio is 5.

    Returns what `minicache calibrate --json` prints. Raises MiniCacheError where something cannot be used.
    """
    if not {"ratio", "max_kl", "budget"} & set(options):
        options["ratio"] = DEFAULT_RATIO
    try:
        chosen = Options(**options)
    except TypeError as error:
        raise MiniCacheError(f"an option of calibrate_model() is unknown: {error}") from None
    chosen = replace(chosen, texts=tuple(map(user_path, chosen.texts)))
    progress = Progress("calibrate", silent=True, on_progress=on_progress)
    return calibrate(file_of(model), chosen, user_path(output) if output is not None else None, progress)


def material_of(file: GGUFFile, shape: ModelShape, options: Options) -> Material:
    """The chunks of text to fit to, to measure on and to check with.

    Beside texts that are given, as much of the package's own is used. Codes that are fitted to one kind of text alone
    lose several times as much on others, and with both they lose little more on it.
    """
    usual = THOROUGH if options.thorough else FAST
    # --max-kl measures many plans on what is probed
    more = usual is FAST and file.weight_bytes >= LARGE and options.max_kl is None
    cut = usual.probing_more() if more else usual
    cut = cut.at(options.n_ctx) if options.n_ctx else cut
    n_token = options.n_token + (len(cut.turns) - len(usual.turns)) * cut.chunk
    with Vocabulary(file.path) as vocabulary:

        def material(paths: Sequence[Path], description: str) -> Material:
            return make_material(
                vocabulary, paths, n_token, shape.n_ctx_train, description, options.window, cut
            )

        given = material(options.texts, ", ".join(map(name_shown, options.texts))) if options.texts else None
        own = material(bundled.calibration_files(), "the package's own text")
    return given.beside(own) if given else own


def work_key(job: Job, material: Material) -> str:
    """A key that is the same for calibrations that can resume each other's work."""
    options = job.options.rope_block, job.options.window, WAYS[job.options.thorough]
    what = [fingerprint(job.file), job.file.weight_bytes, *options, __version__]
    return hashlib.sha256(f"{what} {material.digest}".encode()).hexdigest()[:24]


def make_plan(job: Job, material: Material, model: NativeModel, folder: Path, output: Path) -> dict[str, Any]:
    """Goes through the phases from capture to report, and writes the plan to `output`."""
    fits = fit_layers(job, observe(job, material, model, folder))
    memory = folder / "measured.json"
    with Meter(model, measured_chunks(job, material), job.threads, memory, job.phases.on_run) as meter:
        builder = PlanBuilder(job.shape, plan_template(job, fits), fits.source.samples.ropes)
        planner = Planner(builder, fits.source, fits.weights, Trials(meter, folder), fits.plain)
        search = Search(planner, groupings_of(job.options.group, job.shape), job.note)
        search.refuse(job.target)
        search.planner = informed(job, planner, material, model, folder)
        checked = choose(job, search)
        choices = choice_rows(search.planner, checked.found)
        compared = comparison(search, checked, job.n_ctx)
    text = f"{material.description}, {search.planner.source.samples.n_token} tokens"
    plan = replace(checked.found.plan, text=text, notes=notes(job.target, checked, choices))
    write_fitted(output, plan, checked.found.fits)
    return {
        "model": str(job.file.path),
        "plan": str(output),
        **report(plan, material, job.n_ctx, compared, checked),
    }


def observe(job: Job, material: Material, model: NativeModel, folder: Path) -> Captured:
    """Captures the chunks to fit to; a model whose layers cannot be observed or coded is left with no layers."""
    shape, n_chunk = job.shape.growing(), len(material.fit)
    samples = Samples(folder, shape, material.fit, output_gains(job.file, shape), job.options.window)

    def on_chunk(n: int) -> None:
        job.phases(READING, n / n_chunk, f"chunk {n} of {n_chunk}")

    try:
        capture(model, samples, job.threads, on_chunk)
    except NotObservedError as error:
        job.note(f"{error}, so it gets a plain cache")
        return Captured(samples, [])
    return Captured(samples, [number for number, layer in enumerate(shape.layers) if layer.grows])


def fit_layers(job: Job, captured: Captured) -> Fits:
    """The weights of errors in each captured layer, and what each plain type loses of it."""
    samples, plain = captured.samples, {}
    weights = {number: layer_weights(samples, number) for number in captured.layers}

    def fit(number: int) -> PlainFit:
        return fit_plain(samples, weights[number], number)

    for n_done, found in enumerate(fits_side_by_side(fit, weights, job.threads), 1):
        plain[found.layer] = found
        job.phases(FITTING, n_done / len(weights), f"layer {found.layer}")
    return Fits(Source(samples, job.options.rope_block), weights, plain)


def plan_template(job: Job, fits: Fits) -> Plan:
    """A plan without groups, with what all plans of this calibration have in common."""
    block = job.options.rope_block
    return Plan(
        fingerprint=fingerprint(job.file),
        n_layer=len(job.shape.layers),
        rope_block=block if any(fits.source.block(layer) for layer in fits.weights) else 0,
        window=job.options.window,
        model=str(job.file.keys.get("general.name") or ""),
        tool=f"minicache-cpp {__version__}",
    )


def only_checked(job: Job) -> bool:
    """Whether plans are measured on the text to check with alone.

    That is so in the fast way where only few plans are tried; a search for --max-kl tries many, which would fit the
    text.
    """
    return not job.options.thorough and job.options.max_kl is None


def measured_chunks(job: Job, material: Material) -> dict[str, Sequence[Chunk]]:
    """The chunks that plans are measured on, to choose between them, and those that the chosen plan is checked with."""
    return {"measure": material.check if only_checked(job) else material.measure, "check": material.check}


def informed(job: Job, planner: Planner, material: Material, model: NativeModel, folder: Path) -> Planner:
    """The planner, with the layers' sensitivities: from probes or, where these fail, as models have them on average.

    A thorough calibration then measures them with a whole cache for each layer. Texts that have been probed, and that
    nothing else is measured on, are fitted to from then on.
    """
    if not planner.weights:
        return planner
    thorough = job.options.thorough
    way, samples = WAYS[job.options.thorough], planner.source.samples
    texts, singles = probed_texts(material, way), planner.singles([PROBE_WIDTH])
    joined = samples.beside([text.chunk for text in texts]) if only_checked(job) else samples

    def on_text(number: int, seen: Mapping[tuple[str, int], Floats]) -> None:
        if joined is not samples:
            heads = by_head(seen, len(texts[number].chunk.tokens), samples.shape)
            joined.write(len(samples.chunks) + number, heads, job.threads)

    found = probe_sensitivities(
        model,
        lambda without: planner.singles([PROBE_WIDTH], without) if without else singles,
        texts,
        way,
        job.threads,
        folder / "probes.json",
        on_text,
        lambda share: job.phases(PROBING, share),
    )
    if found is not None:
        return replace(planner, source=replace(planner.source, samples=joined)).knowing(found)
    differs = "this model's attention differs from what probes assume, so"
    if thorough:
        job.note(f"{differs} each layer is measured with a whole cache")
        return planner.measured()
    job.note(f"{differs} all layers are taken to count alike; --thorough measures each")
    return planner.knowing(usual_sensitivities(singles))


def choose(job: Job, search: Search) -> Checked:
    """Finds the plan for the target, and checks it on held-out text.

    A plan that exceeds --max-kl there, its error included, is replaced by one that measured a lower KL, at most
    MOST_RETRIES times; if the last one exceeds it too, a note says so.
    """

    def checked(target: Target) -> Checked:
        found = search.choose(target, job.options.refine)
        measured = search.trials.measure(found.plan, "check", "the final check", found.fits)
        return Checked(found, measured)

    chosen, max_kl = checked(job.target), job.target.max_kl
    for _ in range(MOST_RETRIES):
        if max_kl is None or chosen.measured.kl_most <= max_kl or chosen.found.choices is None:
            break
        stricter = chosen.found.measured.kl * 0.95 * min(1.0, max_kl / chosen.measured.kl_most)
        chosen = checked(replace(job.target, max_kl=stricter))
    if max_kl is not None and chosen.measured.kl_most > max_kl:
        job.note(
            f"on held-out text the plan loses {chosen.measured.kl:.4f} ± {chosen.measured.kl_error:.4f}, "
            f"which may be more than {max_kl:g}; --tokens makes the error smaller"
        )
    return chosen

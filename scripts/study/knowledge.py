"""What a calibration knows of a model: its K and V on the calibration's text, and how much errors in them count."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import Kind
from minicache_cpp.calibrate.calibration import (
    Job,
    fit_layers,
    informed,
    material_of,
    measured_chunks,
    observe,
    plan_template,
)
from minicache_cpp.calibrate.group_fit import LayerWeights, Source
from minicache_cpp.calibrate.meter import Meter
from minicache_cpp.calibrate.options import Options
from minicache_cpp.calibrate.phases import phases_of
from minicache_cpp.calibrate.planner import Planner
from minicache_cpp.calibrate.plans import PlanBuilder
from minicache_cpp.calibrate.trials import Trials
from minicache_cpp.host.progress import Progress
from minicache_cpp.modelfile.gguf_file import GGUFFile
from minicache_cpp.modelfile.shape import ModelShape
from minicache_cpp.reading.model import NativeModel

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Knowledge:
    """A model's samples, and the weights with which a squared error is the KL divergence that it should cause."""

    shape: ModelShape
    source: Source
    # [n_head_kv, d] of unit vectors, by layer and kind
    weights: LayerWeights

    @property
    def layers(self) -> list[int]:
        return sorted(self.weights)

    def read(self, kind: Kind, layer: int, rope_block: int) -> Floats:
        """The K, relative to these base positions, or the V of a layer, [tokens, n_head_kv, d]."""
        return Source(self.source.samples, rope_block).read(kind, layer)

    def tokens(self, kind: Kind, layer: int) -> Doubles:
        """The weight of each token, relative to the mean, [tokens, n_head_kv]."""
        return self.source.samples.tokens(kind, layer)


def calibrated(file: GGUFFile, shape: ModelShape, n_token: int, folder: Path, threads: int) -> Knowledge:
    """Does what `minicache calibrate` does until it knows the model; what it has measured stays in `folder`."""
    options = Options(ratio=5.0, tokens=n_token, threads=threads)
    material = material_of(file, shape, options)
    with contextlib.closing(Progress("study")) as progress, NativeModel(file.path) as model:
        n_layer = sum(layer.grows for layer in shape.layers)
        job = Job(file, shape, options, phases_of(progress, material, options, n_layer), progress.note)
        folder.mkdir(parents=True, exist_ok=True)
        fits = fit_layers(job, observe(job, material, model, folder))
        with Meter(
            model, measured_chunks(job, material), threads, folder / "measured.json", job.phases.on_run
        ) as meter:
            builder = PlanBuilder(shape, plan_template(job, fits), fits.source.samples.ropes)
            planner = Planner(builder, fits.source, fits.weights, Trials(meter, folder), fits.plain)
            known = informed(job, planner, material, model, folder)
    return Knowledge(shape, known.source, known.sensitivities.scaled(fits.weights))

"""Measures configurations on one model, and makes the plans that they need."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from minicache_cpp import CacheSpec, MiniCacheError
from minicache_cpp.cache.plan import Plan
from minicache_cpp.cache.settings import F16
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.calibrate.alignment import Aligner, aligner
from minicache_cpp.calibrate.allocation import Choice, Chosen, Region, allocate
from minicache_cpp.calibrate.group_fit import GroupFit, Source, fit_group
from minicache_cpp.calibrate.layer_weights import layer_weights
from minicache_cpp.calibrate.meter import Meter
from minicache_cpp.calibrate.planner import Planner
from minicache_cpp.calibrate.plans import PlanBuilder, write_fitted
from minicache_cpp.calibrate.target import ratio
from minicache_cpp.calibrate.trials import Trials
from minicache_cpp.evaluate import evaluation
from minicache_cpp.evaluate.material import prepare
from minicache_cpp.evaluate.settings import Settings as EvaluationSettings
from minicache_cpp.host.progress import OnStep
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import GGUFFile, read_gguf
from minicache_cpp.native.model_shape import model_shape
from minicache_cpp.reading.model import NativeModel
from minicache_cpp.text import bundled
from minicache_cpp.text.files import read_texts

from .figures import Config, Figure
from .results import Results, Settings, identity, missing

# configurations that are compared with one reading of the text by the f16 cache; then results are saved
AT_ONCE = 6


class Lab:
    """A model's plans, made when they are needed."""

    def __init__(
        self,
        file: GGUFFile,
        model: NativeModel,
        fitting: Aligner,
        folder: Path,
        threads: int,
        on_step: OnStep,
    ) -> None:
        self.file, self.model, self.fitting, self.folder, self.threads = file, model, fitting, folder, threads
        self.on_step = on_step
        self.shape = model_shape(file)
        self.planner: Planner | None = None
        self.fits: list[GroupFit] = []
        self.meter: Meter | None = None

    def spec(self, config: Config) -> CacheSpec:
        """The configuration as the library takes it; its plan is written first if it needs one."""
        if config.mode not in ("aligned", "code"):
            return config.spec
        path = self.folder / f"{hashlib.sha256(config.label.encode()).hexdigest()[:16]}.gguf"
        if config.mode == "aligned":
            self.fitting.write(path, config.settings)
        else:
            write_fitted(path, self.code(self.probed(), config), self.fits)
        return CacheSpec.parse(str(path))

    def probed(self) -> Planner:
        """A planner that has measured what errors in each layer cost; all pairs are fitted with it."""
        if self.planner is None:
            samples = self.fitting.samples
            layers = [number for number, layer in enumerate(self.shape.layers) if layer.n_head_kv]
            source = Source(samples, 128)
            turned = any(source.block(layer) for layer in layers)
            template = Plan(fingerprint(self.file), len(self.shape.layers), 128 if turned else 0)
            builder = PlanBuilder(self.shape, template, samples.ropes)
            self.meter = Meter(
                self.model,
                {"measure": self.fitting.material.measure},
                self.threads,
                self.folder / "measured.json",
                lambda name, share: self.on_step(f"codes, {name}, {share:.0%}"),
            )
            weights = {layer: layer_weights(samples, layer) for layer in layers}
            planner = Planner(builder, source, weights, Trials(self.meter, self.folder)).measured()
            self.fits = [self.fitted_pair(planner, a) for a in self.first_layers()]
            self.planner = planner
        return self.planner

    def first_layers(self) -> list[int]:
        """Layer a of each pair that can share a code, counted so that the last pair ends with the last layer."""
        layers, ropes = self.shape.layers, self.fitting.samples.ropes
        return [
            a
            for a in range(len(layers) % 2, len(layers) - 1, 2)
            if layers[a].n_head_kv and layers[a] == layers[a + 1] and ropes[a] == ropes[a + 1]
        ]

    def fitted_pair(self, planner: Planner, a: int) -> GroupFit:
        self.on_step(f"codes, layers {a}+{a + 1}")
        return fit_group(planner.source, planner.sensitivities.scaled(planner.weights), (a, a + 1))

    def code(self, planner: Planner, config: Config) -> Plan:
        """The plan for all pairs from the start layer on that is expected to lose least within the bytes allowed."""
        least = config.ratio or self.slerp_ratio(config)

        def whole(chosen: Chosen) -> list[Choice]:
            left = iter(choice for _, choice in chosen)
            plain = Choice(types=(("f16", "f16"),) * 2)
            return [next(left) if fit.first >= config.start else plain for fit in self.fits]

        # every pair is coded: the planner has no candidates with plain types here
        candidates = [one for one in planner.candidates(self.fits) if one.layers[0] >= config.start]
        found = allocate(
            [Region([[one]]) for one in candidates],
            lambda chosen: ratio(self.shape, planner.builder.of(self.fits, whole(chosen))) >= least,
        )
        if found is None:
            raise MiniCacheError(
                f"{config.label} cannot reach ratio {least:.2f}: even the smallest codes take more"
            )
        # the layers that are not coded have the same type as those that SLERP leaves plain
        plan = planner.builder.of(self.fits, whole(found[0]))
        return replace(plan, type_k=config.kind, type_v=config.kind)

    def slerp_ratio(self, config: Config) -> float:
        """The ratio of SLERP of the same pairs, with the other layers as f16, to compare with planner.ratio()."""
        n_ctx = 4096
        same = CacheSpec.of(config.settings)
        plain = kv_bytes(self.shape, CacheSpec(config.kind, config.kind), n_ctx)
        f16 = kv_bytes(self.shape, F16, n_ctx)
        n_layer, n_plain = len(self.shape.attention_layers), config.start
        merged = kv_bytes(self.shape, same, n_ctx) - plain * n_plain / n_layer
        return f16 / (merged + f16 * n_plain / n_layer)

    def close(self) -> None:
        if self.meter is not None:
            self.meter.__exit__()


@contextmanager
def opened(file: GGUFFile, settings: Settings, threads: int, on_step: OnStep) -> Iterator[Lab]:
    """A lab with the text read that basis matrices and codes are fitted to."""
    on_step("reading the text to fit to")
    with (
        tempfile.TemporaryDirectory(prefix="minicache-paper-") as folder,
        NativeModel(file.path) as model,
        aligner(file, model, (), settings.tokens, threads) as fitting,
    ):
        lab = Lab(file, model, fitting, Path(folder), threads, on_step)
        try:
            yield lab
        finally:
            lab.close()


def measure(
    path: Path,
    figures_of: Callable[[int], Sequence[Figure]],
    settings: Settings,
    out: Path,
    *,
    paths: Sequence[Path],
    threads: int,
    fresh: bool,
    on_step: OnStep,
) -> tuple[Results, list[Figure]]:
    """Measure what is not known yet; returns all results, and the figures that they belong to."""
    file = read_gguf(path)
    shape = model_shape(file)
    if shape.unknown:
        raise MiniCacheError(f"{path} cannot be used: {shape.unknown}")
    text = read_texts(list(paths) or bundled.evaluation_files())
    settings = replace(settings, text=hashlib.sha256(text.encode()).hexdigest()[:16])
    figures = list(figures_of(len(shape.layers)))
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.json", identity(file, settings), fresh)
    wanted = missing(figures, results)
    if not wanted:
        return results, figures

    common = EvaluationSettings(
        contexts=[settings.n_ctx],
        offsets=[0],
        specs=[],
        ubatch=settings.ubatch,
        chunks=settings.chunks,
        threads=threads,
    )
    material = prepare(path, text, common)
    with opened(file, settings, threads, on_step) as lab:
        for first in range(0, len(wanted), AT_ONCE):
            part = wanted[first : first + AT_ONCE]
            where = f"{first + len(results.rows) - first} known, {len(wanted) - first} to go: "
            specs = [lab.spec(config) for config in part]
            names = {spec.name: config.label for spec, config in zip(specs, part, strict=True)}

            def measuring(text: str, where: str = where, names: dict[str, str] = names) -> None:
                for name, label in names.items():
                    text = text.replace(name, label)
                on_step(where + text)

            found = evaluation.measure(file, material, replace(common, specs=specs), measuring)[0]
            for config, row in zip(part, found["rows"], strict=True):
                results.rows[config.label] = row | {"name": config.label, "config": asdict(config)}
            results.data["tokens"] = found["tokens"]
            results.data["pairs"] = {
                f"{a}+{b}": {"before": one.before, "after": one.after}
                for (a, b), one in sorted(lab.fitting.fitted.items())
            } or results.data["pairs"]
            results.save()
    return results, figures

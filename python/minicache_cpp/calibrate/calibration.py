"""A calibration from text to plan: what is captured, fitted, measured, chosen and written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..cache.plan_file import MAX_WINDOW, Plan
from ..cache.plan_store import plan_path
from ..cache.size import plan_bytes, plan_fixed_bytes
from ..errors import MiniCacheError
from ..host.progress import Progress
from ..host.threads import default_threads
from ..host.user_cache import cache_dir
from ..host.work_folder import work_folder
from ..modelfile.fingerprint import fingerprint
from ..modelfile.gguf_file import GGUFFile, read_gguf
from ..modelfile.shape import ModelShape, model_shape
from ..text import bundled
from ..version import __version__

DEFAULT_RATIO = 5.0
DEFAULT_TOKENS = 12288
DEFAULT_BLOCK = 128
DEFAULT_WINDOW = 64
DEFAULT_GROUP = "2"
GROUP_SIZES = {"2": (2,), "4": (4,), "auto": (2, 4)}  # layers of a group, at most, that are tried
COMPARED = ("f16", "q8_0", "q4_0")
TINY = 32 * 2**20  # bytes of weights


@dataclass(frozen=True)
class Options:
    """How a calibration is done; the defaults are the command's."""

    texts: tuple[Path, ...] = ()  # none: the package's own
    ratio: float | None = None
    max_kl: float | None = None
    budget: int | None = None
    n_ctx: int = 0
    rope_block: int = DEFAULT_BLOCK
    window: int = DEFAULT_WINDOW
    group: str = DEFAULT_GROUP
    tokens: int = DEFAULT_TOKENS
    refine: int = 0
    threads: int = 0  # 0: the cores there are, one for a tiny model
    gpu_layers: int = 0


def check_options(options: Options) -> None:
    if options.ratio is not None and not 1 <= options.ratio < float("inf"):
        raise MiniCacheError(f"--ratio {options.ratio:g}: it must be 1 or more")
    if options.max_kl is not None and not 0 < options.max_kl < float("inf"):
        raise MiniCacheError(f"--max-kl {options.max_kl:g}: it must be more than 0")
    for name, least, most in (
        ("n_ctx", 0, 2**31 - 1),
        ("rope_block", 0, 1024),
        ("window", 0, MAX_WINDOW),
        ("tokens", 128, 2**24),
        ("refine", 0, 10),
        ("threads", 0, 4096),
        ("gpu_layers", -1, 2**31 - 1),
    ):
        if not least <= getattr(options, name) <= most:
            option = {"n_ctx": "ctx"}.get(name, name).replace("_", "-")
            raise MiniCacheError(f"--{option} {getattr(options, name)}: it must be from {least} to {most}")
    least = 128 + 4 * options.window  # chunks must be longer than the window, for errors to show
    if options.tokens < least:
        raise MiniCacheError(
            f"--tokens {options.tokens}: with --window {options.window} it must be from {least}"
        )


def calibrate(
    model_path: str | Path, options: Options, output: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Make the plan of a model, and write it; what was chosen and measured, as a JSON-ready object."""
    check_options(options)
    progress = progress or Progress("calibrate", silent=True)
    file = read_gguf(model_path)
    shape = model_shape(file)
    if shape.unknown:
        raise MiniCacheError(
            f"{model_path} can't be calibrated: {shape.unknown}; take a plain cache, such as --config q8_0"
        )
    check_output(output)
    try:
        return _Calibration(file, shape, options, output, progress).make_plan()
    finally:
        progress.close()


def threads_for(file: GGUFFile) -> int:
    """The cores there are; threads that wait for each other only slow a tiny model down."""
    return 1 if file.weight_bytes < TINY else default_threads()


def check_output(output: Path | None) -> None:
    """Refuse what can't be written before minutes of work, not after."""
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise MiniCacheError(f"{output} can't be written: give the path of a file in a folder that exists")


class _Calibration:
    def __init__(
        self,
        file: GGUFFile,
        shape: ModelShape,
        options: Options,
        output: Path | None,
        progress: Progress,
    ) -> None:
        self.file, self.shape, self.options, self.progress = file, shape, options, progress
        self.output = output or plan_path(file)
        self.threads = options.threads or threads_for(file)
        self.fraction = 0.0

    def make_plan(self) -> dict[str, Any]:
        from ..reading.model import NativeModel
        from ..text.vocabulary import Vocabulary
        from .material import make_material

        options, shape = self.options, self.shape
        paths: Sequence[Path] = options.texts or bundled.calibration_files()
        names = ", ".join(path.name for path in options.texts) or "the package's own text"
        self.tell(0, "text")
        with Vocabulary(self.file.path) as vocabulary:
            self.material = make_material(
                vocabulary, paths, options.tokens, shape.n_ctx_train, names, options.window
            )
        with (
            work_folder(cache_dir() / "calibrations" / self.key()) as self.folder,
            NativeModel(self.file.path, options.gpu_layers) as model,
        ):
            return self.with_model(model)

    def key(self) -> str:
        """Equal for calibrations that can take up each other's work."""
        options = self.options.rope_block, self.options.window
        what = [fingerprint(self.file), self.file.weight_bytes, *options, __version__]
        return hashlib.sha256(f"{what} {self.material.digest}".encode()).hexdigest()[:24]

    def with_model(self, model: Any) -> dict[str, Any]:
        from .capture import NotObservedError, capture
        from .group_fit import Source
        from .layer_weights import layer_weights, output_gains
        from .meter import Meter
        from .plain_fit import fit_plain
        from .planner import Planner, Target, choice_table
        from .samples import Samples

        options, shape, material = self.options, self.shape, self.material
        samples = Samples(self.folder, shape, material.fit, output_gains(self.file, shape), options.window)
        layers: list[int] = []  # those that can be kept each in its own way
        try:
            if not shape.window:
                capture(model, samples, self.threads, self.on_chunk)
                layers = [number for number, layer in enumerate(shape.layers) if layer.n_head_kv]
            else:
                self.progress.note("the layers of this model can't be coded: it gets a plain cache")
        except NotObservedError as error:
            self.progress.note(f"{error}: it gets a plain cache")
        source = Source(samples, options.rope_block)
        weights, plain = {}, []
        for number in layers:
            self.tell(0.22 + 0.02 * number / len(shape.layers), "fitting", f"layer {number}")
            weights[number] = layer_weights(samples, number)
            plain.append(fit_plain(samples, weights[number], number))
        base = Plan(
            fingerprint=fingerprint(self.file),
            n_layer=len(shape.layers),
            rope_block=options.rope_block if any(source.block(layer) for layer in layers) else 0,
            window=options.window,
            model=str(self.file.keys.get("general.name") or ""),
            tool=f"minicache-cpp {__version__}",
            text=f"{material.description}, {sum(len(chunk.tokens) for chunk in material.fit)} tokens",
        )
        target = Target(options.ratio, options.max_kl, options.budget, options.n_ctx)
        chunks = {"measure": material.measure, "check": material.check}
        runs = 2 * len(layers) * (1 + options.refine) + 8
        memory = self.folder / "measured.json"
        with Meter(model, chunks, self.threads, memory, self.on_run(runs)) as meter:
            planner = Planner(
                shape,
                source,
                weights,
                meter,
                base,
                self.folder,
                self.progress.note,
                plain,
                GROUP_SIZES[options.group],
            )
            planner.refuse(target)
            if layers:
                planner.probe()
            chosen = planner.choose(target, options.refine)
            checked = planner.measure(chosen.plan, "check", "the final check", chosen.fits)
            for _ in range(3):
                if options.max_kl is None or checked.kl <= options.max_kl or chosen.choices is None:
                    break
                stricter = chosen.measured.kl * 0.95 * min(1.0, options.max_kl / checked.kl)
                chosen = planner.choose(replace(target, max_kl=stricter), options.refine)
                checked = planner.measure(chosen.plan, "check", "the final check", chosen.fits)
            rows = choice_table(planner, chosen)
            compared = self.compared(planner, chosen.plan, checked)
            notes = {
                "target": str(target),
                "why": chosen.why,
                "choices": rows,
                "window": chosen.plan.window,
                "measured": {"kl": chosen.measured.kl, "top1": chosen.measured.top1},
                "checked": {"kl": checked.kl, "top1": checked.top1},
            }
            plan = replace(chosen.plan, notes=notes)
            planner.write(plan, self.output, chosen.fits)
        return {
            "model": str(self.file.path),
            "plan": str(self.output),
            "fingerprint": plan.fingerprint,
            "target": str(target),
            "why": chosen.why,
            "choices": rows,
            "plain": {
                "type_k": plan.type_k,
                "type_v": plan.type_v,
                "layers": {str(one.layer): list(one.types) for one in plan.plain},
            },
            "rope_block": plan.rope_block,
            "retain": plan.retain,
            "window": plan.window,
            "pool_type": plan.pool_type,
            "tokens": {
                kind: sum(len(one.tokens) for one in getattr(material, kind))
                for kind in ("fit", "measure", "check")
            },
            "context": self.context(),
            "kl_measured": chosen.measured.kl,
            "rows": compared,
        }

    def on_chunk(self, n: int) -> None:
        n_chunk = len(self.material.fit)
        self.tell(0.02 + 0.2 * n / n_chunk, "reading the text", f"chunk {n} of {n_chunk}")

    def context(self) -> int:
        return self.options.n_ctx or min(self.shape.n_ctx_train or 4096, 32768)

    def compared(self, planner: Any, plan: Plan, checked: Any) -> list[dict[str, Any]]:
        """The plan beside plain caches, on text that nothing was fitted to or chosen by."""
        from .planner import ratio

        n_ctx = self.context()
        plans = [("plan", plan, checked)]
        for name in COMPARED:
            if name in planner.plain_types():
                plain = planner.plain_plan(name)
                plans.append((name, plain, planner.measure(plain, "check", f"{name}, for comparison")))
        f16 = plan_bytes(self.shape, planner.plain_plan("f16"), n_ctx)
        rows = []
        for name, one, measured in plans:
            n_bytes = plan_bytes(self.shape, one, n_ctx)
            rows.append(
                {
                    "name": name,
                    "bytes": n_bytes,
                    "fixed_bytes": plan_fixed_bytes(self.shape, one),
                    "ratio": ratio(self.shape, one),
                    "total_ratio": f16 / n_bytes,
                    "kl": measured.kl,
                    "top1": measured.top1,
                }
            )
        return rows

    def on_run(self, n_run: int) -> Any:
        done = 0

        def told(name: str) -> None:
            nonlocal done
            self.tell(0.3 + 0.7 * min(done / n_run, 1), "measuring", name)
            done += 1

        return told

    def tell(self, fraction: float, stage: str, detail: str = "") -> None:
        self.progress(fraction, stage, detail)

"""`minicache calibrate`: fit shared codes to a model's layers, measure what they cost, and write the plan."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import __version__, kv_size, texts
from .cli import add_json_option, add_machine_options, add_model_argument
from .config import MAX_WINDOW, MiniCache
from .demo_model import demo_model
from .errors import MiniCacheError
from .fingerprint import fingerprint
from .gguf_file import GGUFFile, read_gguf
from .plan_file import Plan
from .plans import plan_path
from .progress import Progress
from .report import mib, types_name
from .user_cache import cache_dir
from .work_folder import work_folder

EXAMPLE = "minicache calibrate model.gguf --ratio 8 -o model.plan.gguf"
DEFAULT_RATIO = 5.0
DEFAULT_TOKENS = 12288
DEFAULT_BLOCK = 128
DEFAULT_WINDOW = 64
DEFAULT_GROUP = "2"
GROUP_SIZES = {"2": (2,), "4": (4,), "auto": (2, 4)}  # layers of a group, at most, that are tried
COMPARED = ("f16", "q8_0", "q4_0")
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
ALIGNED_SETTINGS = {
    "start": "the first layer that may be merged, a fraction or a layer number (default 0.5)",
    "t": "SLERP parameter (default 0.6)",
    "retain": "fraction of the tokens that stay unmerged (default 0.05)",
    "type": "cache type of directions and plain layers (default f16)",
}
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


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--text",
        action="append",
        type=Path,
        metavar="FILE",
        help="UTF-8 text to calibrate with, of any length; may be repeated (default: the package's own)",
    )
    target = parser.add_argument_group("what is wanted").add_mutually_exclusive_group()
    target.add_argument(
        "--ratio",
        type=float,
        metavar="R",
        help=f"f16 bytes per cached token over the plan's (default: {DEFAULT_RATIO:g})",
    )
    target.add_argument(
        "--max-kl",
        type=float,
        metavar="X",
        help="the smallest cache whose KL divergence from the f16 cache is at most X nats per token",
    )
    target.add_argument(
        "--budget", metavar="SIZE", help="bytes of the whole cache at --ctx tokens, such as 512MiB"
    )
    parser.add_argument("--ctx", type=int, metavar="N", help="the context that --budget is for")
    parser.add_argument(
        "--rope-block",
        type=int,
        default=DEFAULT_BLOCK,
        metavar="B",
        help="K is coded relative to multiples of this position, 1 to 1024, 0: as it is (default %(default)s)",
    )
    parser.add_argument(
        "--window",
        type=int,
        metavar="W",
        help="the latest tokens of each stream, which stay as they are "
        f"(default {DEFAULT_WINDOW}; with --mode aligned 0)",
    )
    parser.add_argument(
        "--group",
        choices=GROUP_SIZES,
        default=DEFAULT_GROUP,
        help="how many neighbouring layers share a code: four lose less, and attention reads twice as much of each; "
        "auto takes four where that measures better by a tenth (default %(default)s)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=DEFAULT_TOKENS,
        metavar="N",
        help="tokens of text to work with (default %(default)s)",
    )
    parser.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="N",
        help="rounds of measuring the sensitivities again, at what was chosen (default %(default)s)",
    )
    add_machine_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="PLAN",
        help="the plan file (default: in the user's cache directory, where minicache='auto' finds it)",
    )
    add_json_option(parser)
    study = parser.add_argument_group(
        "for study", "SLERP in fitted bases in place of codes, with its settings as in a SPEC; needs -o"
    )
    study.add_argument("--mode", choices=("code", "aligned"), default="code", help="default: code")
    for name, what in ALIGNED_SETTINGS.items():
        study.add_argument(f"--{name}", metavar=name[0].upper(), help=f"with --mode aligned: {what}")


def run(args: argparse.Namespace) -> int:
    if args.mode == "aligned":
        return run_aligned(args)
    for name in ALIGNED_SETTINGS:
        if getattr(args, name) is not None:
            raise MiniCacheError(f"--{name} goes with --mode aligned")
    options = options_of(args)
    found = calibrate(args.model or demo_model(), options, args.output, Progress("calibrate"))
    print(json.dumps(found, indent=2) if args.json else table(found))
    return 0


def run_aligned(args: argparse.Namespace) -> int:
    """Fit bases for SLERP, and write the plan."""
    for name in ("ratio", "max_kl", "budget", "ctx"):
        if getattr(args, name) is not None:
            raise MiniCacheError(f"--{name.replace('_', '-')} is for codes, not for --mode aligned")
    if args.output is None:
        raise MiniCacheError(
            "--mode aligned needs -o PLAN: such a plan is for study, and not found by itself"
        )
    names = (*ALIGNED_SETTINGS, "window")
    given = [f"{name}={getattr(args, name)}" for name in names if getattr(args, name) is not None]
    settings = MiniCache.parse("slerp:" + ",".join(given))
    options = Options(
        texts=tuple(args.text or ()),
        window=0,  # nothing is measured here
        tokens=args.tokens,
        threads=args.threads or 0,
        gpu_layers=args.gpu_layers,
    )
    check_options(options)
    check_output(args.output)
    file = read_gguf(args.model or demo_model())

    from . import alignment

    progress = Progress("calibrate")
    try:
        found = alignment.align(
            file,
            settings,
            args.output,
            paths=options.texts,
            n_tokens=options.tokens,
            threads=options.threads or default_threads(file),
            gpu_layers=options.gpu_layers,
            progress=progress,
        )
    finally:
        progress.close()
    print(json.dumps(found, indent=2) if args.json else alignment.table(found))
    return 0


def options_of(args: argparse.Namespace) -> Options:
    budget = parse_size(args.budget) if args.budget is not None else None
    if (budget is None) != (args.ctx is None):
        raise MiniCacheError(
            "--budget and --ctx go together: the size of the cache, and its context in tokens"
        )
    given = args.ratio is not None or args.max_kl is not None or budget is not None
    return Options(
        texts=tuple(args.text or ()),
        ratio=args.ratio if given else DEFAULT_RATIO,
        max_kl=args.max_kl,
        budget=budget,
        n_ctx=args.ctx or 0,
        rope_block=args.rope_block,
        window=args.window if args.window is not None else DEFAULT_WINDOW,
        group=args.group,
        tokens=args.tokens,
        refine=args.refine,
        threads=args.threads or 0,
        gpu_layers=args.gpu_layers,
    )


def parse_size(text: str) -> int:
    """Bytes of a size such as 512MiB; K, M, G and T are powers of 1024."""
    match = SIZE.fullmatch(text.strip())
    if not match or float(match[1]) <= 0:
        raise MiniCacheError(f"--budget {text}: it is no size; write one such as 512MiB or 1.5GiB")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


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
    shape = kv_size.model_shape(file)
    if shape.unknown:
        raise MiniCacheError(
            f"{model_path} can't be calibrated: {shape.unknown}; take a plain cache, such as --config q8_0"
        )
    check_output(output)
    try:
        return _Calibration(file, shape, options, output, progress).run()
    finally:
        progress.close()


def default_threads(file: GGUFFile) -> int:
    """The cores there are; threads that wait for each other only slow a tiny model down."""
    from .chat import default_threads

    return 1 if file.weight_bytes < TINY else default_threads()


def check_output(output: Path | None) -> None:
    """Refuse what can't be written before minutes of work, not after."""
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise MiniCacheError(f"{output} can't be written: give the path of a file in a folder that exists")


class _Calibration:
    def __init__(
        self,
        file: GGUFFile,
        shape: kv_size.ModelShape,
        options: Options,
        output: Path | None,
        progress: Progress,
    ) -> None:
        self.file, self.shape, self.options, self.progress = file, shape, options, progress
        self.output = output or plan_path(file)
        self.threads = options.threads or default_threads(file)
        self.fraction = 0.0

    def run(self) -> dict[str, Any]:
        from .bench_context import BenchModel
        from .calibration_text import make_material
        from .vocabulary import Vocabulary

        options, shape = self.options, self.shape
        paths: Sequence[Path] = options.texts or texts.calibration_files()
        names = ", ".join(path.name for path in options.texts) or "the package's own text"
        self.tell(0, "text")
        with Vocabulary(self.file.path) as vocabulary:
            self.material = make_material(
                vocabulary, paths, options.tokens, shape.n_ctx_train, names, options.window
            )
        with (
            work_folder(cache_dir() / "calibrations" / self.key()) as self.folder,
            BenchModel(self.file.path, options.gpu_layers) as model,
        ):
            return self.with_model(model)

    def key(self) -> str:
        """Equal for calibrations that can take up each other's work."""
        options = self.options.rope_block, self.options.window
        what = [fingerprint(self.file), self.file.weight_bytes, *options, __version__]
        return hashlib.sha256(f"{what} {self.material.digest}".encode()).hexdigest()[:24]

    def with_model(self, model: Any) -> dict[str, Any]:
        from .capture import NotObservedError, Samples, capture
        from .group_fit import Source
        from .layer_weights import layer_weights, output_gains
        from .measurement import Meter
        from .plain_fit import fit_plain
        from .planner import Planner, Target, choice_table

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
        f16 = kv_size.plan_bytes(self.shape, planner.plain_plan("f16"), n_ctx)
        rows = []
        for name, one, measured in plans:
            n_bytes = kv_size.plan_bytes(self.shape, one, n_ctx)
            rows.append(
                {
                    "name": name,
                    "bytes": n_bytes,
                    "fixed_bytes": kv_size.plan_fixed_bytes(self.shape, one),
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


def table(found: dict[str, Any]) -> str:
    """What was chosen and why, and what came of it, for people."""
    lines = [f"{Path(found['model']).name}: {found['target']}; {found['why']}"]
    if found["choices"]:
        lines += [
            "",
            "layers     bits/value K     V   error K      V   share of the loss",
        ]
        for row in found["choices"]:
            layers = "+".join(map(str, row["layers"]))
            if row["types"]:
                types = ", ".join(types_name(*names) for names in row["types"])
                lines.append(f"{layers:<8}  {'plain ' + types:<35}   {row['share']:>17.1%}")
                continue
            lines.append(
                f"{layers:<8}  {row['bits_k']:>13.2f} {row['bits_v']:>5.2f}   {row['error_k']:>7.2%} "
                f"{row['error_v']:>6.2%}   {row['share']:>17.1%}"
            )
    if found["rope_block"]:
        lines.append(f"K is coded relative to blocks of {found['rope_block']} positions")
    if found["retain"]:
        lines.append(f"one token in {round(1 / found['retain'])} is retained as {found['pool_type']}")
    if found["window"]:
        lines.append(
            f"the latest {found['window']} tokens are kept as {found['pool_type']}, whatever the context"
        )
    lines += ["", f"cache at {found['context']} tokens      taken   ratio  total      KL    top-1"]
    for row in found["rows"]:
        lines.append(
            f"{row['name']:<16} {mib(row['bytes']):>16}  {row['ratio']:>6.2f} {row['total_ratio']:>6.2f}  "
            f"{row['kl']:>6.4f}  {row['top1']:>6.1%}"
        )
    tokens = found["tokens"]
    lines.append(
        f"measured on {tokens['check']} tokens of text that nothing was fitted to or chosen by, past tokens "
        "from the cache"
    )
    lines.append(f"plan: {found['plan']}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    from .cli import run_command

    return run_command("calibrate", argv)


if __name__ == "__main__":
    sys.exit(main())

"""`minicache bench`: prefill and decode speed of plain and MiniCache caches, side by side in one process."""

from __future__ import annotations

import argparse
import json

from ..cache.checked import add_config_option, checked_specs
from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..host.output import show
from ..host.progress import StepProgress
from ..host.threads import default_threads
from ..modelfile.gguf_file import read_gguf
from ..models.requested import requested_model
from ..native import devices
from ..options import (
    add_json_option,
    add_machine_options,
    add_model_argument,
    check_machine_options,
    check_numbers,
)

EXAMPLE = "minicache bench model.gguf --ctx 4096 --config q4_0 --config slerp:type=q4_0"
FILLS = ("compute", "copies")
DEFAULT_CTX = (512, 4096, 16384)
DEFAULT_SPECS = ("f16", "q8_0", "q4_0", "slerp:type=f16", "slerp:type=q8_0", "slerp:type=q4_0")


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    parser.add_argument(
        "--ctx",
        type=int,
        action="append",
        metavar="N",
        help=f"tokens in the cache; may be repeated (default: {', '.join(map(str, DEFAULT_CTX))})",
    )
    add_config_option(parser, "measure")
    parser.add_argument(
        "--reps", type=int, default=5, metavar="R", help="measurements of each number (default: 5)"
    )
    parser.add_argument(
        "--fill",
        choices=FILLS,
        default=FILLS[0],
        help="copies: compute only the first tokens of a context and copy them for the rest, which is quick and makes "
        "no difference to decode; prefill is then that of the first tokens",
    )
    parser.add_argument(
        "--ops",
        action="store_true",
        help="show where the time goes: the share of each kind of operation in prefill and decode",
    )
    add_machine_options(parser)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="cuda: all layers on the GPU; an error without one"
    )
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    contexts = sorted(set(args.ctx or DEFAULT_CTX))
    specs = list(map(CacheSpec.parse, args.config or DEFAULT_SPECS))
    threads = args.threads or default_threads()
    check_numbers("--ctx", contexts, 1)
    check_numbers("--reps", [args.reps], 1)
    check_machine_options(args)
    if args.device and args.gpu_layers:
        raise MiniCacheError("--device says where all layers are: leave --gpu-layers out")
    if args.device == "cuda":
        devices.require_gpu()
    gpu_layers = -1 if args.device == "cuda" else args.gpu_layers
    file = read_gguf(requested_model(args.model))
    specs = checked_specs(file, specs)
    copies = args.fill == "copies"
    with StepProgress() as progress:
        if args.ops:
            from . import ops, ops_table

            if gpu_layers:
                raise MiniCacheError("--ops measures on the CPU: leave --device and --gpu-layers out")
            found = ops.measure(file, contexts, specs, threads, args.reps, copies, progress)
            text = ops_table.table(found)
        else:
            from .speed import measure
            from .speed_table import table

            found = measure(file, contexts, specs, threads, args.reps, gpu_layers, progress, copies)
            text = table(found)
    show(json.dumps(found, indent=2) if args.json else text)
    return 0

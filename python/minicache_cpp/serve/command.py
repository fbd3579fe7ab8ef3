"""`minicache serve`: llama-server with the cache of a model's plan."""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
from pathlib import Path

from ..cache.checked import checked_specs
from ..cache.room import known_kv_bytes, refuse_too_large
from ..cache.settings import F16, CacheSpec
from ..errors import MiniCacheError
from ..host.notes import note, warnings_as_notes
from ..host.output import show, tell
from ..host.paths import path_option
from ..host.units import mib
from ..modelfile.gguf_file import GGUFFile, read_gguf
from ..models.requested import requested_model
from ..options import (
    MOST,
    add_json_option,
    add_machine_options,
    add_model_argument,
    check_machine_options,
    check_numbers,
)
from ..runtime import auto
from ..runtime.asked import DEFAULT_CTX, add_cache_options, context_size, given_spec
from ..runtime.request import LARGEST_RATIO
from . import address
from .arguments import INFORMATION, refuse_decided, server_arguments
from .output import Output
from .process import Server
from .program import find_server

EXAMPLE = "minicache serve model.gguf --ctx 8192 --slots 4 -- --metrics"
PASSES_ON = True
VARIABLE = "LLAMA_MINICACHE"
MOST_SLOTS = 256  # llama.cpp's LLAMA_MAX_SEQ


def configure(parser: argparse.ArgumentParser) -> None:
    add_model_argument(parser)
    add_cache_options(parser)
    parser.add_argument(
        "--calibrate",
        choices=("once", "never"),
        help="without --config and a plan of the model: make one before the port opens, or take plain q8_0 "
        f"(default: as {auto.VARIABLE} says, once without it)",
    )
    parser.add_argument(
        "--ctx",
        type=int,
        metavar="N",
        help=f"context of each conversation in tokens (default: the model's, at most {DEFAULT_CTX})",
    )
    parser.add_argument(
        "--slots",
        type=int,
        default=1,
        metavar="N",
        help="conversations at a time, each with a cache of its own; more of them wait (default %(default)s)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on, 0.0.0.0 for every one (default %(default)s)",
    )
    parser.add_argument("--port", type=int, default=8080, help="0 for one that is free (default %(default)s)")
    parser.add_argument(
        "--save",
        type=path_option,
        metavar="DIR",
        help="lets POST /slots/N?action=save and restore keep caches in this folder",
    )
    add_machine_options(parser)
    add_json_option(parser, "print one JSON object when the server answers")
    parser.add_argument("--verbose", action="store_true", help="show all of llama-server's log")
    parser.add_argument_group(
        "after --", "everything goes to llama-server; `minicache serve -- --help` lists its options"
    )


def run(args: argparse.Namespace) -> int:
    program = find_server()
    if INFORMATION.intersection(args.passed_on):
        return subprocess.run([program, *args.passed_on], check=False).returncode
    check_arguments(args)
    file = read_gguf(requested_model(args.model))
    n_ctx = context_size(args.ctx, file)
    # before minutes of calibration
    port = address.free_port(args.host, args.port)
    make_folder(args.save)
    with warnings_as_notes():
        spec = settled_spec(args, file, n_ctx)
    command = [str(program), *server_arguments(args, file, spec, n_ctx, port)]
    output = Output(args.verbose)
    with Server(command, environment(spec), output) as server:
        ready = functools.partial(address.answers, args.host, port, address.prefix_of(args.passed_on))
        if server.wait_until(ready):
            say_ready(args, file, spec, n_ctx, port, output)
        status = server.wait()
    if server.stopped_by:
        return status
    if status or not server.was_ready:
        when = "" if server.was_ready else " before it answered"
        tell(f"minicache: llama-server ended with status {status}{when}: {output.reason()}")
    return status


def check_arguments(args: argparse.Namespace) -> None:
    check_numbers("--slots", [args.slots], 1, MOST_SLOTS)
    # llama-server is given the tokens of all slots together
    check_numbers("--ctx", [args.ctx], 1, MOST // args.slots)
    check_numbers("--port", [args.port], 0, 65535)
    check_machine_options(args)
    refuse_decided(args.passed_on)


def make_folder(path: Path | None) -> None:
    """Makes the folder of saved slots. llama-server refuses to start where it is missing."""
    try:
        if path is not None:
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MiniCacheError(f"--save {path}: the folder cannot be made: {error.strerror or error}") from None


def settled_spec(args: argparse.Namespace, file: GGUFFile, n_ctx: int) -> CacheSpec:
    """The cache that is asked for, or the model's plan, or without one a plain cache.

    Raises MiniCacheError where the slots' caches do not fit in memory, if possible before a plan is made.
    """
    room = functools.partial(refuse_too_large, file, n_ctx, gpu_layers=args.gpu_layers, n_stream=args.slots)
    given = given_spec(args)
    if given is not None:
        checked_specs(file, [given])
        room([given])
        return given
    choice = auto.calibrate_choice(args.calibrate)
    if choice == "background":
        # the model is in another process, whose idle time is not known here
        choice = "never"
    from ..native.log import NativeLog

    with NativeLog(args.verbose).installed():
        machine = {"n_threads": args.threads, "n_gpu_layers": args.gpu_layers}
        # what no plan makes small enough is refused before one is made
        too_large = functools.partial(room, [F16], share=1 / LARGEST_RATIO)
        spec = auto.resolve(file, choice, note, machine, before_making=too_large).spec
    room([spec])
    return spec


def environment(spec: CacheSpec) -> dict[str, str]:
    """The environment of llama-server; a setting of the user's for other programs does not count."""
    variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return variables if spec.minicache is None else {**variables, VARIABLE: spec.minicache.environment_text()}


def say_ready(
    args: argparse.Namespace, file: GGUFFile, spec: CacheSpec, n_ctx: int, port: int, output: Output
) -> None:
    """Says where the server answers, and what its caches take."""
    taken, f16 = (known_kv_bytes(file, one, n_ctx, n_stream=args.slots) for one in (spec, F16))
    ratio = f16 / taken if taken else 1.0
    output.release()
    if spec.minicache is None and taken:
        # in the words that the library has for other caches
        smaller = f" instead of {mib(f16)} as f16, {ratio:.2f} times smaller" if spec != F16 else ""
        note(f"the KV cache is plain {spec.name}: {mib(taken)}{smaller}")
    elif spec.minicache is not None and not output.reported:
        note("this llama-server says nothing of MiniCache: it was built without it, and its cache is plain")
    where = address.url(args.host, port)
    found = {
        "address": where,
        "model": str(file.path),
        "cache": spec.name,
        "context": n_ctx,
        "slots": args.slots,
        "kv_bytes": taken,
        "kv_bytes_f16": f16,
        "ratio": ratio,
    }
    each = f"{args.slots} conversations of {n_ctx} tokens" if args.slots > 1 else f"{n_ctx} tokens of context"
    line = f"serving {file.path.stem} at {where}/v1, {each}; Ctrl-C stops it"
    show(json.dumps(found, indent=2) if args.json else line)

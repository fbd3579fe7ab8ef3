"""The command line of llama-server, and the options that stay ours."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..host.threads import default_threads
from ..modelfile.gguf_file import GGUFFile

# options that print something and exit, without a model
INFORMATION = frozenset({"-h", "--help", "--usage", "--version", "--list-devices", "--completion-bash"})

# options of llama-server that would contradict what was checked here, and what to give instead
DECIDED = {
    "MODEL": "-m --model -mu --model-url -dr --docker-repo -hf -hfr --hf-repo -hff --hf-file --models-dir "
    "--models-preset",
    "--ctx": "-c --ctx-size --kv-unified-per-slot",
    "--slots": "-np --parallel -kvu --kv-unified",
    "--host": "--host",
    "--port": "--port",
    "--config": "-ctk --cache-type-k -ctv --cache-type-v",
    "--gpu-layers": "-ngl --gpu-layers --n-gpu-layers",
    "--save": "--slot-save-path",
}
# short names of options that may be given again after --
SHORT = {
    "--alias": "-a",
    "--cache-ram": "-cram",
    "--device": "-dev",
    "--fit": "-fit",
    "--flash-attn": "-fa",
    "--log-verbosity": "-lv",
    "--threads": "-t",
    "--threads-batch": "-tb",
}
QUIET, TALKATIVE = "2", "3"  # warnings and errors; llama-server's own default


def refuse_decided(passed_on: Sequence[str]) -> None:
    """Raises MiniCacheError where an option after -- decides what an option before it decides."""
    ours = {option: name for name, options in DECIDED.items() for option in options.split()}
    for word in passed_on:
        if (option := _option(word)) in ours:
            raise MiniCacheError(
                f"{word} after -- is what {ours[option]} of minicache serve decides; give that, before --"
            )


def _option(word: str) -> str:
    """The option that llama.cpp takes a word for: --ctx_size is --ctx-size too."""
    return word.replace("_", "-") if word.startswith("--") else word


def server_arguments(
    args: argparse.Namespace, file: GGUFFile, spec: CacheSpec, n_ctx: int, port: int
) -> list[str]:
    """The arguments of llama-server: each slot has a cache of its own, of `n_ctx` tokens.

    What was passed on takes the place of the same option here.
    """
    threads = str(args.threads or default_threads())
    plain_f16 = spec.minicache is None and spec.cache == "f16"
    options = {
        "--model": str(file.path),
        # the name that clients see; it would be the whole path
        "--alias": file.path.stem,
        "--ctx-size": str(n_ctx * args.slots),
        "--parallel": str(args.slots),
        "--host": args.host,
        "--port": str(port),
        "--threads": threads,
        "--threads-batch": threads,
        "--cache-type-k": spec.type_k,
        "--cache-type-v": spec.type_v,
        # merged layers and quantized V need it
        "--flash-attn": "auto" if plain_f16 else "on",
        # nothing is left to be fitted, and it would read the model's header once more
        "--fit": "off",
        # by default it keeps up to 8 GiB of old conversations beside the cache, which no memory check counts
        "--cache-ram": "0",
        # by default any web page that is open in a browser here may talk to the server
        "--cors-origins": "localhost",
        "--log-verbosity": TALKATIVE if args.verbose else QUIET,
    }
    if args.gpu_layers:
        options["--gpu-layers"] = "all" if args.gpu_layers < 0 else str(args.gpu_layers)
    else:
        options["--device"] = "none"  # a build without a GPU warns of --gpu-layers, whatever its value
    if args.save:
        options["--slot-save-path"] = str(args.save)
    # llama-server warns of an option that is given twice, and would add up the names of --alias
    passed_on = set(map(_option, args.passed_on))
    kept = {name: value for name, value in options.items() if not {name, SHORT.get(name)} & passed_on}
    words = [word for pair in kept.items() for word in pair]
    return [*words, "--no-kv-unified", "--no-cache-idle-slots", *args.passed_on]

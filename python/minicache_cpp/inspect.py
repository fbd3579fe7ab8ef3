"""`minicache inspect`: what a model's KV cache takes at a given context, without loading the model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cache.checked import add_config_option, refuse_other_models
from .cache.plan_store import find_plan
from .cache.settings import F16, CacheSpec, MiniCache
from .cache.size import kv_bytes, merged_groups, token_bytes
from .cli import run_command
from .errors import MiniCacheError
from .host.output import show
from .host.units import mib
from .modelfile.gguf_file import read_gguf
from .modelfile.shape import Layer, ModelShape
from .models.requested import requested_model
from .native.model_shape import model_shape
from .options import add_json_option, add_model_argument, check_numbers

EXAMPLE = "minicache inspect model.gguf --ctx 32768"
DEFAULT_SPECS = ("f16", "q8_0", "q4_0", "slerp:type=f16", "slerp:type=q8_0", "slerp:type=q4_0")


@dataclass(frozen=True)
class Row:
    """One cache at the context."""

    name: str
    bytes: int
    # what each further token takes, and f16's over that
    bytes_per_token: float
    ratio: float
    # f16's bytes over these, at this context
    total_ratio: float
    groups: int  # groups of layers that share storage


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_argument(parser)
    parser.add_argument(
        "--ctx", type=int, default=0, metavar="N", help="context in tokens (default: the model's)"
    )
    add_config_option(parser, "show")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table or the object."""
    found = inspect_model(requested_model(args.model), args.ctx, args.config)
    show(json.dumps(found, indent=2) if args.json else table(found))
    return 0


def inspect_model(path: str | Path, n_ctx: int = 0, specs: Sequence[str] | None = None) -> dict[str, Any]:
    """What each cache takes at a context, as one JSON-ready object.

    n_ctx: tokens, 0 for what the model was trained for. specs: None for common caches and the model's plan.

    Of each cache: `bytes` at this context, sliding windows, recurrent states, codecs and exact tokens included, and
    `total_ratio`, f16's over that; `bytes_per_token`, what each further token adds, and `ratio`, f16's over that.
    """
    check_numbers("--ctx", [n_ctx], 0)
    file = read_gguf(path)
    notes: list[str] = []
    if not specs:
        plan = find_plan(file, notes.append)
        caches = [
            *map(CacheSpec.parse, DEFAULT_SPECS),
            *([CacheSpec.of(MiniCache(plan=plan))] if plan else []),
        ]
    else:
        caches = list(map(CacheSpec.parse, specs))
    refuse_other_models(caches, file)
    shape = model_shape(file)
    n_ctx = n_ctx or shape.n_ctx_train
    if n_ctx < 1:
        raise MiniCacheError(f"a context of {n_ctx} tokens is impossible; give --ctx a number of 1 or more")
    heads = sorted({layer.n_head_kv for layer in shape.layers})
    layer = next(iter(shape.attention_layers), Layer(0, 0, 0))
    rows: list[dict[str, Any]] = []
    if shape.unknown:
        notes.append(f"{shape.unknown}; Llama.kv_report() says what a loaded context takes")
    else:
        notes += _what_grows(shape)
        rows = [vars(row) for row in _rows(shape, n_ctx, caches, notes)]
    return {
        "model": str(file.path),
        "name": file.keys.get("general.name"),
        "architecture": shape.architecture,
        "layers": len(shape.layers),
        "heads": shape.n_head,
        "kv_heads": heads[0] if len(heads) == 1 else [layer.n_head_kv for layer in shape.layers],
        "head_size_k": layer.head_size_k,
        "head_size_v": layer.head_size_v,
        "context_trained": shape.n_ctx_train,
        "weight_bytes": file.weight_bytes,
        "context": n_ctx,
        "rows": rows,
        "notes": notes,
    }


def _rows(shape: ModelShape, n_ctx: int, caches: Sequence[CacheSpec], notes: list[str]) -> list[Row]:
    rows = []
    f16, f16_token = kv_bytes(shape, F16, n_ctx), token_bytes(shape, F16)
    for spec in caches:
        try:
            taken, token = kv_bytes(shape, spec, n_ctx), token_bytes(shape, spec)
            groups = merged_groups(shape, spec.minicache) if spec.minicache else []
        except MiniCacheError as error:
            notes.append(f"{spec.name} cannot be used: {error}")
            continue
        merges = spec.minicache is not None and spec.minicache.mode != "plain" and spec.plan_file is None
        if merges and not groups:
            notes.append(
                f"{spec.name} merges no pair: no two neighbouring layers from its start layer on have the same sizes"
            )
        rows.append(
            Row(
                spec.name,
                taken,
                token,
                f16_token / token if token else 1.0,
                f16 / taken if taken else 1.0,
                len(groups),
            )
        )
    return rows


def _what_grows(shape: ModelShape) -> list[str]:
    """What of a mixed model's cache grows with the context."""
    growing = sum(layer.grows for layer in shape.layers)
    others = {
        "window": f"look back only {shape.window} tokens (sliding window)",
        "state": "have a recurrent state of fixed size",
    }
    counts = {
        "window": sum(layer.kind == "window" for layer in shape.layers),
        "state": sum(layer.state_bytes > 0 for layer in shape.layers),
    }
    return [
        f"the cache of {growing} of {len(shape.layers)} layers grows with the context; {count} {others[kind]}"
        for kind, count in counts.items()
        if count
    ]


def table(found: dict[str, Any]) -> str:
    """The model in two lines, a row for each cache, and notes."""
    heads = found["kv_heads"]
    if isinstance(heads, list):
        heads = f"{min(heads)} to {max(heads)}"
    size = f"{found['head_size_k']}"
    if found["head_size_v"] != found["head_size_k"]:
        size += f" (K), {found['head_size_v']} (V)"
    layers = f"{found['layers']} layers, {found['heads']} heads, {heads} KV heads, head size {size}"
    lines = [
        f"{found['name'] or found['model']}: {found['architecture']}, weights {mib(found['weight_bytes'])}",
        f"{layers}, trained for {found['context_trained']} tokens",
    ]
    if found["rows"]:
        head = f"KV cache at {found['context']} tokens"
        names = [label(row["name"]) for row in found["rows"]]
        width = max(len(head), *map(len, names))
        lines += [
            "",
            f"{head:<{width}}  {'taken':>12}  total  bytes/token  ratio",
        ]
        for name, row in zip(names, found["rows"], strict=True):
            lines.append(
                f"{name:<{width}}  {mib(row['bytes']):>12}  {row['total_ratio']:>5.2f}  "
                f"{row['bytes_per_token']:>11,.0f}  {row['ratio']:>5.2f}"
            )
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])


def label(name: str) -> str:
    """The name of a cache, of a plan the file's name without its folders."""
    return f"plan {Path(name).name}" if name.endswith(".gguf") else name


if __name__ == "__main__":
    sys.exit(run_command("inspect"))

#!/usr/bin/env python3
"""Write a plan with random codecs for any model, to measure speed, which does not depend on their values.

    python3 scripts/random_plan.py random-8b-4.gguf --ratio 5 -o random-5.plan.gguf
    python3 scripts/random_plan.py random-8b-4.gguf --ratio 10 --group 4 -o random-10.plan.gguf
    python3 scripts/random_plan.py random-8b-4.gguf --plain q4_0 -o plain-q4_0.plan.gguf    # nothing is merged

All layers are coded, in groups of --group, like those of plans that calibrate writes: coefficients of many widths, more
bits for K than for V, and for some KV heads than for others, bases 128 tokens apart, a window of 64 tokens. With
--plain, all layers are plain layers of a MiniCache context, whose attention is computed by its kernels.

What such a plan restores has nothing to do with what was stored, so it is of no use for anything else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import (
    MAX_LAYERS,
    UNIT,
    WIDTHS,
    GroupFormat,
    Layout,
    Layouts,
    token_row_bytes,
)
from minicache_cpp.cache.plan import Plan
from minicache_cpp.cache.plan_file import write_plan
from minicache_cpp.calibrate.code_fit import UNIT_LENGTH, PartCodec, codec_array
from minicache_cpp.errors import MiniCacheError
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.ggml_types import cache_type
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.modelfile.shape import Layer
from minicache_cpp.native.model_shape import model_shape

ROPE_BLOCK, WINDOW = 128, 64  # calibrate's defaults
# as in plans that were calibrated: K's share of the bytes, and by how many bits units of 16 coefficients get narrower
SHARE_K = 0.6
SLOPE_K, SLOPE_V = 0.27, 0.4
# how much more than the mean the KV head with the most bytes has
SPREAD = 0.15


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a GGUF file")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="PLAN")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ratio", type=float, metavar="R", help="f16 bytes of a token over those of its codes")
    what.add_argument("--plain", metavar="TYPE", help="no groups: all layers plain, with this cache type")
    parser.add_argument(
        "--group",
        type=int,
        default=2,
        choices=range(1, MAX_LAYERS + 1),
        metavar="N",
        help="layers that share a code, 1 to 4 (default: 2)",
    )
    args = parser.parse_args(argv)
    if args.ratio is not None and args.ratio < 2:
        parser.error(f"--ratio {args.ratio}: it must be 2 or more")
    if args.plain is not None:
        cache_type(args.plain, "--plain")
    file = read_gguf(args.model)
    layers = model_shape(file).layers
    groups = [] if args.plain else coded_groups(layers, args.group, args.ratio)
    plan = Plan(
        fingerprint(file),
        len(layers),
        rope_block=ROPE_BLOCK,
        type_k=args.plain or "f16",
        type_v=args.plain or "f16",
        pool_type="q8_0",
        window=WINDOW,
        groups=tuple(groups),
        model=str(file.keys.get("general.name", "")),
        tool="random_plan.py",
        text="none",
    )
    rng = np.random.default_rng(1)
    write_plan(args.output, plan, {group.first: random_codec(rng, group) for group in groups})
    return 0


def coded_groups(layers: Sequence[Layer], n_layer: int, ratio: float) -> list[GroupFormat]:
    """Groups of so many layers from the first on, whose codes take at most 1/ratio of f16's bytes.

    Layers that are left over at the end stay plain.
    """
    groups = []
    for first in range(0, len(layers) - n_layer + 1, n_layer):
        layer = layers[first]
        sizes = layer.head_size_k, layer.head_size_v
        budget = layer.n_head_kv * n_layer * 2 * sum(sizes) / ratio  # bytes of a token of all layers
        k = layouts_of(layer.n_head_kv, sizes[0], n_layer, SLOPE_K, SHARE_K * budget)
        v = layouts_of(layer.n_head_kv, sizes[1], n_layer, SLOPE_V, budget - token_row_bytes(k, n_layer))
        members = tuple(range(first, first + n_layer))
        groups.append(GroupFormat(members, layer.n_head_kv, *sizes, k, v))
    return groups


def layouts_of(n_head_kv: int, size: int, n_layer: int, slope: float, n_bytes: float) -> Layouts:
    """The widest layouts of a token's row of at most n_bytes, of which some heads have more than others."""
    shares = 1 + SPREAD * np.linspace(1, -1, n_head_kv) if n_head_kv > 1 else np.ones(1)
    return tuple(layout_of(size, n_layer, slope, share * n_bytes / n_head_kv) for share in shares)


def layout_of(size: int, n_layer: int, slope: float, n_bytes: float) -> Layout:
    """The widest layout of rows of at most n_bytes for so many layers' heads of this size."""
    units = np.arange(n_layer * size // UNIT)
    best = Layout()
    for top in np.arange(1.0, 16.0, 1 / 16):
        # four layers' numbers spread over as many directions again as two layers'
        wanted = np.clip(np.rint(top - 2 / n_layer * slope * units), 0, max(WIDTHS))
        layout = Layout.of([int(width) if width in WIDTHS else min(int(width), 6) for width in wanted])
        if layout.row_bytes(n_layer) > n_bytes:
            break
        best = layout
    return best


def random_codec(rng: np.random.Generator, group: GroupFormat) -> NDArray[np.int8]:
    """Random orthonormal directions, with steps that cover four standard deviations of the coefficients."""

    def part(layouts: Layouts, size: int) -> PartCodec:
        n, n_layer = group.n_head_kv, group.n_layer
        widths = [np.repeat(np.array(layout.widths, np.float64), UNIT) for layout in layouts]
        steps = [8 / np.sqrt(size) / 2**width for width in widths]
        vectors = np.linalg.qr(rng.standard_normal((n, n_layer * size, n_layer * size)))[0]
        mag = np.empty((n, n_layer, 2), np.float32)
        # a restored unit vector has the length UNIT_LENGTH; the vectors it stands for have lengths of 1e-2 to 1e3
        mag[..., 0] = np.log(1e-2 / UNIT_LENGTH)
        mag[..., 1] = np.log(1e5) / 254
        return PartCodec(
            layouts,
            mag,
            np.ones((n, n_layer * size), np.float32),
            [(1 / (UNIT_LENGTH * step**2)).astype(np.float32) for step in steps],
            [
                (own[:, : len(step)] * step * UNIT_LENGTH).astype(np.float16)
                for own, step in zip(vectors, steps, strict=True)
            ],
        )

    return codec_array(part(group.layouts_k, group.d_k), part(group.layouts_v, group.d_v))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MiniCacheError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")

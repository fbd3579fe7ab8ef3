"""Our own plans: layers of a group share a code (docs/method.md), coded and decoded by the native kernels.

A token is coded when it has been read, and is kept exactly as well while it is in the plan's window, as the first ones
are for good. Layers that are in no group have the plan's cache types and no window. The bytes are those of codes,
window and codecs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicache_cpp import MiniCacheError
from minicache_cpp.cache.code_format import GroupFormat, Kind
from minicache_cpp.cache.native_settings import window_first
from minicache_cpp.cache.plan import Plan, codec_name
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.cache.size import plan_window, plan_window_bytes
from minicache_cpp.calibrate.plain_fit import round_trip
from minicache_cpp.calibrate.rope import Rope
from minicache_cpp.kernels.codes import Codec, decode, encode
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.ggml_types import GGML_TYPES
from minicache_cpp.modelfile.gguf_file import GGUFFile, read_gguf
from minicache_cpp.modelfile.shape import ModelShape

from .method import Floats, Method
from .plain_types import restore_plain


@dataclass(frozen=True)
class PlanMethod(Method):
    """The cache that a plan describes."""

    shape: ModelShape
    plan: Plan
    # by the first layer of the group
    codecs: dict[int, Codec]
    # how many tokens are kept exactly, the first and the latest ones
    window: int

    @classmethod
    def open(cls, path: Path, model: GGUFFile, shape: ModelShape, rope: Rope, n_ctx: int) -> PlanMethod:
        """Opens a plan, for a context of so many tokens.

        Raises MiniCacheError where it is for another model, or merges or retains tokens.
        """
        plan = PlanFile.open(path).plan
        if plan.fingerprint != fingerprint(model):
            raise MiniCacheError(f"the plan {path} was made for another model than {model.path}")
        if plan.mode != "code" or plan.retain:
            raise MiniCacheError(
                f"the plan {path} merges or retains tokens; the simulation covers codes alone"
            )
        file = read_gguf(path)
        return cls(
            shape,
            plan,
            {group.first: _codec(group, file, rope, plan.rope_block) for group in plan.groups},
            plan_window(plan, n_ctx),
        )

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        plain = ((layer,) for layer in self.plan.plain_types())
        return (*(group.layers for group in self.plan.groups), *plain)

    def first_coded(self, layers: tuple[int, ...]) -> int:
        return window_first(self.window) if layers[0] in self.codecs else 0

    def coded_end(self, kind: Kind, layers: tuple[int, ...], n_tokens: int, tail: int) -> int:
        if layers[0] not in self.codecs:
            return n_tokens
        return max(0, n_tokens - max(tail, self.window - self.first_coded(layers)))

    def exact(self, x: Floats) -> Floats:
        return round_trip(x, self.plan.pool_type)

    def restore(self, kind: Kind, x: Floats, layers: tuple[int, ...], first: int) -> Floats:
        layer = self.shape.layers[layers[0]]
        if layers[0] not in self.codecs:
            return restore_plain(kind, x, layer, self.plan.plain_types()[layers[0]][kind == "v"])
        codec = self.codecs[layers[0]]
        block = self.plan.rope_block
        positions = first + np.arange(x.shape[1])
        bases = (positions // block * block).astype(np.int32) if block else None
        # the kernel codes K and V at once, each by itself; only one of them is wanted here
        other = layer.head_size_v if kind == "k" else layer.head_size_k
        nothing = np.zeros((*x.shape[:3], other), np.float32)
        k, v = (x, nothing) if kind == "k" else (nothing, x)
        codes = encode(k, v, codec, bases=bases, n_threads=1)
        sides = (decode(codes.k, codes.v, codec, side, bases=bases) for side in range(len(layers)))
        return np.stack([restored[kind == "v"] for restored in sides])

    @property
    def token_bytes(self) -> float:
        plain = sum(
            GGML_TYPES[type_k].row_bytes(self.shape.layers[layer].n_k)
            + GGML_TYPES[type_v].row_bytes(self.shape.layers[layer].n_v)
            for layer, (type_k, type_v) in self.plan.plain_types().items()
        )
        return plain + sum(group.token_bytes for group in self.plan.groups)

    def n_bytes(self, n_tokens: int, tail: int) -> float:
        window = plan_window_bytes(self.shape, self.plan, max(tail, self.window))
        codecs = sum(group.codec_bytes(self.codecs[group.first].n_rot) for group in self.plan.groups)
        return n_tokens * self.token_bytes + window + codecs


def _codec(group: GroupFormat, file: GGUFFile, rope: Rope, rope_block: int) -> Codec:
    freq = np.asarray(rope.freq if rope_block else (), dtype="<f4")
    return Codec(
        freq.tobytes() + file.tensors[codec_name(group)].read(),
        tuple(layout.units for layout in group.layouts_k),
        tuple(layout.units for layout in group.layouts_v),
        group.d_k,
        group.d_v,
        group.n_head_kv,
        rope.kind if rope_block else "none",
        2 * len(freq),
        group.n_layer,
    )

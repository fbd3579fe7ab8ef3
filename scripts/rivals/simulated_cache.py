"""A KV cache that gives back what a method restores, and counts what the method stores."""

from __future__ import annotations

import itertools

import numpy as np

from minicache_cpp.cache.code_format import KINDS, Kind
from minicache_cpp.modelfile.shape import Layer

from .method import Floats, Method, head_size


class SimulatedCache:
    """The K and V of one sequence. Without a method, the cache keeps them in float32 and loses nothing.

    n_ctx: the most tokens that are read.
    tail: how many of the latest tokens stay exact, beside those that the method keeps exact anyway.
    """

    def __init__(self, layers: list[Layer], n_ctx: int, method: Method | None = None, tail: int = 0) -> None:
        self.method, self.tail = method, tail
        # what was computed, and what is seen of it, [n_ctx, n_head_kv, d] for each kind and layer
        self.computed, self.seen = (
            {
                (kind, number): np.zeros((n_ctx, layer.n_head_kv, head_size(kind, layer)), np.float32)
                for kind in KINDS
                for number, layer in enumerate(layers)
            }
            for _ in range(2)
        )
        self.n_tokens = 0
        self.n_block = 0
        # the end of the coded tokens, by kind and first layer of the group
        self.coded: dict[tuple[Kind, int], int] = {}

    def read(self, layer: int) -> tuple[Floats, Floats]:
        """K and V of all tokens of earlier blocks, [n_tokens, n_head_kv, d] each."""
        return self.seen["k", layer][: self.n_tokens], self.seen["v", layer][: self.n_tokens]

    def add(self, layer: int, q: Floats, k: Floats, v: Floats) -> None:
        """Takes a layer's K (after RoPE) and V of the tokens of this block, [n, n_head_kv, d] each.

        The queries q [n, n_head, d_k] are for caches that look at what is asked.
        """
        self.n_block = len(k)
        new = slice(self.n_tokens, self.n_tokens + self.n_block)
        self.computed["k", layer][new], self.computed["v", layer][new] = k, v

    def end_block(self) -> None:
        """Codes what the method codes now; all layers have added their K and V."""
        self.n_tokens += self.n_block
        if self.method is None:
            for kind, number in self.computed:
                self._show(kind, number, self.n_tokens - self.n_block)
        else:
            for kinds in self.method.kinds:
                self._code(kinds, self.method)
        self.n_block = 0

    def _show(self, kind: Kind, layer: int, first: int) -> None:
        self.seen[kind, layer][first : self.n_tokens] = self.computed[kind, layer][first : self.n_tokens]

    def _code(self, kinds: tuple[Kind, ...], method: Method) -> None:
        for layers in method.groups:
            key = kinds[0], layers[0]
            first = self.coded.get(key, method.first_coded(layers))
            last = method.coded_end(kinds[0], layers, self.n_tokens, self.tail)
            if last > first:
                x = {
                    kind: np.stack([self.computed[kind, layer][first:last] for layer in layers])
                    for kind in kinds
                }
                for kind, restored in method.restore_kinds(x, layers, first).items():
                    for layer, one in zip(layers, restored, strict=True):
                        self.seen[kind, layer][first:last] = one
            for kind, layer in itertools.product(kinds, layers):
                for exact in (slice(0, method.first_coded(layers)), slice(max(first, last), self.n_tokens)):
                    self.seen[kind, layer][exact] = method.exact(self.computed[kind, layer][exact])
            self.coded[key] = max(first, last)

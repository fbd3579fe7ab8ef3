"""A variant as a method of the simulation in scripts/rivals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from minicache_cpp.cache.code_format import KINDS, Kind
from minicache_cpp.cache.native_settings import window_first
from minicache_cpp.calibrate.group_fit import Source
from minicache_cpp.calibrate.plain_fit import round_trip
from minicache_cpp.modelfile.ggml_types import GGML_TYPES
from rivals.method import Floats, Method

from .fit import Fit, Member, choose_widths, fit, parts_of, restore
from .importance import Importance
from .knowledge import Knowledge
from .matrices import Matrices
from .rows import classify
from .variants import Variant


class VariantMethod(Method):
    """K and V in a variant's codes, with the window of today's plans."""

    def __init__(
        self,
        known: Knowledge,
        variant: Variant,
        name: str,
        on_step: Callable[[str], None],
        important: Importance | None = None,
        matrices: Matrices | None = None,
    ) -> None:
        self.shape, self.variant = known.shape, variant
        self.source = Source(known.source.samples, variant.block)
        parts = parts_of(known, variant)
        self.fits = []
        for n, (sharing, members) in enumerate(parts):
            on_step(f"{name}: fitting code {n} of {len(parts)}")
            self.fits.append(fit(known, variant, sharing, members, matrices))
        # the class of each of the text's tokens, by the first member of a code
        self.rows: dict[Member, NDArray[np.int64]] = {}
        if important is not None:
            self.rows = classify(self.fits, known, important, variant)
        f16 = sum(2.0 * (layer.n_k + layer.n_v) for layer in known.shape.layers)
        self._token_bytes = choose_widths(self.fits, variant, f16)
        self.by_group: dict[int, list[Fit]] = defaultdict(list)
        for one in self.fits:
            self.by_group[one.members[0].layer].append(one)
        self._groups = tuple(
            tuple(dict.fromkeys(m.layer for m in ones[0].members)) for ones in self.by_group.values()
        )

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        return self._groups

    @property
    def kinds(self) -> tuple[tuple[Kind, ...], ...]:
        return (KINDS,) if self.variant.code == "kv" else super().kinds

    def first_coded(self, layers: tuple[int, ...]) -> int:
        return window_first(self.variant.window)

    def coded_end(self, kind: Kind, layers: tuple[int, ...], n_tokens: int, tail: int) -> int:
        return max(0, n_tokens - max(tail, self.variant.window - self.first_coded(layers)))

    def exact(self, x: Floats) -> Floats:
        return round_trip(x, self.variant.pool)

    def restore(self, kind: Kind, x: Floats, layers: tuple[int, ...], first: int) -> Floats:
        return self.restore_kinds({kind: x}, layers, first)[kind]

    def restore_kinds(self, x: dict[Kind, Floats], layers: tuple[int, ...], first: int) -> dict[Kind, Floats]:
        """What is restored of K, of V, or of both, [layers, tokens, n_head_kv, d]; both where they share a code."""
        given = dict(x)
        if "k" in x:
            positions = first + np.arange(x["k"].shape[1])
            given["k"] = np.stack(
                [self.source.coded(layer, one, positions) for layer, one in zip(layers, x["k"], strict=True)]
            )
        result = {kind: np.empty_like(one) for kind, one in x.items()}
        for one in self.by_group[layers[0]]:
            if {m.kind for m in one.members} - set(x):
                continue
            places = [(m.kind, layers.index(m.layer), m.head) for m in one.members]
            vectors = [given[kind][layer, :, head] for kind, layer, head in places]
            n = len(vectors[0])
            rows = self.rows.get(one.members[0], np.zeros(first + n, int))[first : first + n]
            for (kind, layer, head), restored in zip(
                places, restore(one, vectors, rows, self.variant), strict=True
            ):
                result[kind][layer, :, head] = restored
        if "k" in x:
            result["k"] = np.stack(
                [
                    self.source.cached(layer, one, positions)
                    for layer, one in zip(layers, result["k"], strict=True)
                ]
            )
        return result

    @property
    def token_bytes(self) -> float:
        return self._token_bytes

    def n_bytes(self, n_tokens: int, tail: int) -> float:
        """The bytes of codes and window; the decoders are about the same in all variants."""
        exact = sum(
            GGML_TYPES[self.variant.pool].row_bytes(n)
            for layer in self.shape.layers
            for n in (layer.n_k, layer.n_v)
        )
        return n_tokens * self._token_bytes + self.variant.window * exact

    @property
    def expected(self) -> float:
        """The loss that the widths were chosen by."""
        return sum(one.loss for one in self.fits)

    @property
    def multiply_adds(self) -> float:
        """Of decode with one query head a KV head, for a cached token: those of scores and of values."""
        n = 0.0
        for one in self.fits:
            # a code of several heads is multiplied by each head's queries, one of K and V for both purposes
            n += one.coefficients * len({(m.head, m.kind, m.layer) for m in one.members})
        return n

"""What every method has in common: which tokens it codes and when, what it restores, and what it stores."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from minicache_cpp import MiniCacheError
from minicache_cpp.cache.code_format import KINDS, Kind
from minicache_cpp.modelfile.shape import Layer, ModelShape

Floats = NDArray[np.float32]

# a number of f16, in bits
HALF = 16


class Method(ABC):
    """How the K and V of past tokens are kept.

    A token is kept exactly at first, in f16, and coded once. From then on only what the code restores is seen.
    """

    shape: ModelShape

    @property
    def kinds(self) -> tuple[tuple[Kind, ...], ...]:
        """K and V, apart or as one where they are coded together."""
        return tuple((kind,) for kind in KINDS)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The layers that are coded together."""
        return tuple((number,) for number in range(len(self.shape.layers)))

    def first_coded(self, layers: tuple[int, ...]) -> int:
        """How many tokens at the beginning of the context are never coded in these layers."""
        return 0

    def coded_end(self, kind: Kind, layers: tuple[int, ...], n_tokens: int, tail: int) -> int:
        """The end of a group's coded tokens when `n_tokens` have been read and the latest `tail` must stay exact."""
        return max(0, n_tokens - tail)

    def exact(self, x: Floats) -> Floats:
        """x as the tokens that are not coded are kept."""
        return x.astype(np.float16).astype(np.float32)

    @abstractmethod
    def restore(self, kind: Kind, x: Floats, layers: tuple[int, ...], first: int) -> Floats:
        """What is restored of x [layers, tokens, n_head_kv, d], the K or V of consecutive tokens from `first` on."""

    def restore_kinds(self, x: dict[Kind, Floats], layers: tuple[int, ...], first: int) -> dict[Kind, Floats]:
        """What is restored of kinds that are coded together, each as in restore()."""
        return {kind: self.restore(kind, one, layers, first) for kind, one in x.items()}

    @property
    @abstractmethod
    def token_bytes(self) -> float:
        """The bytes of a coded token in all layers, with its share of what several tokens have in common."""

    @abstractmethod
    def n_bytes(self, n_tokens: int, tail: int) -> float:
        """The bytes of the whole cache when `n_tokens` have been read: codes, exact tokens, and tables."""


class LayerMethod(Method):
    """A method that codes each layer by itself, in the same number of bits for each token and head."""

    @abstractmethod
    def head_bits(self, kind: Kind, d: int) -> float:
        """The bits of one coded token of one head of d numbers, with its share of scales."""

    @property
    def table_bytes(self) -> float:
        """The bytes of codebooks and matrices, which are stored once."""
        return 0

    @property
    def token_bytes(self) -> float:
        return sum(self._row_bytes(kind, layer) for kind in KINDS for layer in self.shape.layers)

    def n_bytes(self, n_tokens: int, tail: int) -> float:
        total = self.table_bytes
        for kind in KINDS:
            for number, layer in enumerate(self.shape.layers):
                n_coded = max(
                    0, self.coded_end(kind, (number,), n_tokens, tail) - self.first_coded((number,))
                )
                exact = (n_tokens - n_coded) * numbers(kind, layer) * HALF / 8
                total += n_coded * self._row_bytes(kind, layer) + exact
        return total

    def _row_bytes(self, kind: Kind, layer: Layer) -> float:
        return layer.n_head_kv * self.head_bits(kind, head_size(kind, layer)) / 8


def head_size(kind: Kind, layer: Layer) -> int:
    """The numbers of a head of K or of V."""
    return layer.head_size_k if kind == "k" else layer.head_size_v


def numbers(kind: Kind, layer: Layer) -> int:
    """The numbers of a token's K or V in a layer."""
    return layer.n_k if kind == "k" else layer.n_v


def require(name: str, value: float, valid: bool, rule: str) -> None:
    """Raises MiniCacheError where a parameter of a method breaks its rule."""
    if not valid:
        raise MiniCacheError(f"{name}={value}: it must be {rule}")

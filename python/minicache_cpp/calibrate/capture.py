"""Runs the model over calibration chunks and records each layer's K (after RoPE), V, and how much attention amplifies
an error in them.

Memory holds one chunk at a time, which is 6 bytes for each K and V value of its tokens: 192 MiB for 512 tokens of an 8B
model. A chunk that is on disk already is not run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from ..errors import MiniCacheError
from ..modelfile.shape import ModelShape
from ..native import binding
from ..native.batch import BatchToken
from ..reading.model import NativeModel
from .material import Chunk
from .observed import Observed, observing
from .samples import Samples

Floats = NDArray[np.float32]


class NotObservedError(MiniCacheError):
    """The model's attention does not go through llama.cpp's common path, which the library observes."""


def capture(model: NativeModel, samples: Samples, threads: int, on_chunk: Callable[[int], None]) -> None:
    """Runs the model over the chunks that `samples` does not have yet, and sets `samples.ropes`.

    Calls `on_chunk` with the number of chunks that are done, after each. Raises NotObservedError where a layer's Q, K
    or V cannot be seen, and MiniCacheError where the model cannot be run.
    """
    length = max(len(chunk.tokens) for chunk in samples.chunks.values())
    samples.folder.mkdir(parents=True, exist_ok=True)
    with observing(model, length, threads) as observed:
        samples.ropes = [observed.rope(number) for number in range(len(samples.shape.layers))]
        for number, chunk in samples.chunks.items():
            if not samples.has(number):
                samples.write(number, read_chunk(observed, chunk, samples.shape), threads)
            on_chunk(number + 1)


def read_chunk(observed: Observed, chunk: Chunk, shape: ModelShape) -> dict[tuple[str, int], Floats]:
    """Runs a chunk; returns Q, K and V by kind ("q", "k", "v") and layer, [tokens, heads, size].

    Raises NotObservedError where one of them is missing.
    """
    n = len(chunk.tokens)
    binding.clear(observed.ctx)
    tokens = (
        BatchToken(token, chunk.position + i, wanted=i == n - 1) for i, token in enumerate(chunk.tokens)
    )
    observed.read(tokens, "qkv")
    return by_head(observed.seen, n, shape)


def by_head(
    seen: Mapping[tuple[str, int], Floats], n: int, shape: ModelShape
) -> dict[tuple[str, int], Floats]:
    """Q, K and V of n tokens by kind and layer, [n, heads, size], of what was seen of them.

    Raises NotObservedError where one of them is missing.
    """
    found = {}
    for number, layer in enumerate(shape.layers):
        sizes = {"q": layer.head_size_k, "k": layer.head_size_k, "v": layer.head_size_v}
        for kind, size in sizes.items() if layer.n_head_kv else ():
            if (kind, number) not in seen:
                raise NotObservedError(
                    f"the {kind.upper()} of layer {number} cannot be observed in this model"
                )
            found[kind, number] = seen[kind, number].reshape(n, -1, size)
    return found

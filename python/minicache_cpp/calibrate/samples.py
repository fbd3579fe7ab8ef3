"""The K and V of a model on the calibration's text, in files.

Each chunk has two files. `chunk-N.kv.npy` holds K (after RoPE) and V of all layers as float16, and
`chunk-N.weights.npy`, which is written last and so marks the chunk as complete, holds how much attention amplifies
errors in them (attention_weights.py). Memory never holds more than one chunk while the model runs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import Kind
from ..host.array_files import save_array
from ..host.threads import side_by_side
from ..modelfile.shape import ModelShape
from .attention_weights import AttentionWeights, attention_weights
from .material import Chunk
from .rope import Rope

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Samples:
    """The captured chunks of a model, in a folder.

    `gains` holds the mean square gain of each layer's output matrix, [n_head], or None for 1; without any all are 1.
    `window` is that of the cache, which keeps the first and the latest tokens exactly: errors in them do not count.
    """

    def __init__(
        self,
        folder: Path,
        shape: ModelShape,
        chunks: Sequence[Chunk],
        gains: Sequence[Doubles | None] = (),
        window: int = 0,
    ) -> None:
        self.folder, self.shape, self.gains, self.window = folder, shape, gains, window
        # by their numbers in the folder
        self.chunks = dict(enumerate(chunks))
        # set by capture(): one for each layer, None where a layer's K is turned in a way that Rope cannot express
        self.ropes: list[Rope | None] = []
        # the files that have been read from, by chunk and kind: fits read each layer's part of every chunk many times
        self.opened: dict[tuple[int, str], NDArray[Any]] = {}

    def without(self, numbers: Collection[int]) -> Samples:
        """The same samples but for the chunks of these numbers."""
        others = copy(self)
        others.chunks = {number: chunk for number, chunk in self.chunks.items() if number not in numbers}
        return others

    def beside(self, chunks: Sequence[Chunk]) -> Samples:
        """The same samples and these chunks, which take the next numbers."""
        others = copy(self)
        others.chunks = {**self.chunks, **dict(enumerate(chunks, len(self.chunks)))}
        return others

    def has(self, number: int) -> bool:
        """Whether chunk `number` is complete."""
        return self._file(number, "weights").exists()

    def write(self, number: int, seen: Mapping[tuple[str, int], Floats], threads: int) -> None:
        """Stores chunk `number`: `seen` has Q, K and V by kind ("q", "k", "v") and layer, [tokens, heads, size]."""
        layers = [layer for layer, one in enumerate(self.shape.layers) if one.n_head_kv]

        def weights_of(layer: int) -> Doubles:
            q, k, v = (seen[kind, layer] for kind in "qkv")
            gain = self.gains[layer] if self.gains else None
            read = attention_weights(q, k, v, gain if gain is not None else np.ones(q.shape[1]), self.window)
            return np.concatenate([one.reshape(-1) for one in (read.k, read.v, read.tokens_k, read.tokens_v)])

        weights = np.concatenate(list(side_by_side(weights_of, layers, threads)))
        rows = [seen[kind, layer].reshape(-1).astype(np.float16) for layer in layers for kind in "kv"]
        save_array(self._file(number, "kv"), np.concatenate(rows))
        save_array(self._file(number, "weights"), weights)

    @property
    def n_token(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks.values())

    @property
    def positions(self) -> NDArray[np.int64]:
        """The positions of all tokens, chunk after chunk, [tokens]."""
        return np.concatenate(
            [np.arange(len(chunk.tokens)) + chunk.position for chunk in self.chunks.values()]
        )

    def layer(self, number: int) -> tuple[Floats, Floats]:
        """K (after RoPE) and V of a layer over all chunks, [tokens, heads, size]."""
        keys, values = [], []
        for index, chunk in self.chunks.items():
            n = len(chunk.tokens)
            data = self._open(index, "kv")
            start = n * sum(layer.n_k + layer.n_v for layer in self.shape.layers[:number])
            layer = self.shape.layers[number]
            middle, end = start + n * layer.n_k, start + n * (layer.n_k + layer.n_v)
            keys.append(data[start:middle].reshape(n, layer.n_head_kv, layer.head_size_k).astype(np.float32))
            values.append(data[middle:end].reshape(n, layer.n_head_kv, layer.head_size_v).astype(np.float32))
        return np.concatenate(keys), np.concatenate(values)

    def read(self, number: int) -> AttentionWeights:
        """How much errors in a layer's K and V count, over all chunks."""
        chunks = [self._read(index, number) for index in self.chunks]
        shares = [len(chunk.tokens) for chunk in self.chunks.values()]
        return AttentionWeights(
            np.average([one.k for one in chunks], axis=0, weights=shares),
            np.average([one.v for one in chunks], axis=0, weights=shares),
            np.concatenate([one.tokens_k for one in chunks]),
            np.concatenate([one.tokens_v for one in chunks]),
        )

    def tokens(self, kind: Kind, number: int) -> Doubles:
        """The weight of each token in a layer's K or V, relative to the mean, [tokens, heads]."""
        read = self.read(number)
        return read.tokens_k if kind == "k" else read.tokens_v

    def _open(self, number: int, kind: str) -> NDArray[Any]:
        """The array of a file of chunk `number`, mapped into memory."""
        if (number, kind) not in self.opened:
            # an array over the mapping: slices of np.memmap itself cost more than what they are read for
            self.opened[number, kind] = np.asarray(np.load(self._file(number, kind), mmap_mode="r"))
        return self.opened[number, kind]

    def _file(self, number: int, kind: str) -> Path:
        return self.folder / f"chunk-{number:04}.{kind}.npy"

    def _read(self, index: int, number: int) -> AttentionWeights:
        n = len(self.chunks[index].tokens)
        before = sum(one.n_k + (1 + 2 * n) * one.n_head_kv for one in self.shape.layers[:number])
        layer = self.shape.layers[number]
        data = self._open(index, "weights")[before:]
        sizes = np.cumsum([layer.n_k, layer.n_head_kv, n * layer.n_head_kv, n * layer.n_head_kv])
        k, v, tokens_k, tokens_v = np.split(data[: sizes[-1]], sizes[:-1])
        heads = layer.n_head_kv
        by_token = (tokens.reshape(n, heads) for tokens in (tokens_k, tokens_v))
        return AttentionWeights(k.reshape(heads, -1), np.array(v), *by_token)

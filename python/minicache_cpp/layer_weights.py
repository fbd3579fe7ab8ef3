"""How much an error of a layer's K or V counts: by what reads it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .capture import Rope, Samples
from .gguf_file import GGUFFile
from .kv_size import ModelShape

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

OUTPUT_ROWS = 1024  # of an output matrix, spread over it, that are looked at
LEAST_WEIGHT = 1e-3  # of the mean: where queries are next to nothing now, they may be something another time


def layer_weights(
    file: GGUFFile, samples: Samples, number: int, k: Floats, v: Floats
) -> tuple[Doubles, Doubles]:
    """Of squared errors of unit vectors of K and of V, [n_head_kv, head size]; k and v [tokens, n_head_kv, head size].

    K by the mean squares of the queries' numbers and of its own length, V by the size of the output matrix's part that
    reads the head and its own length.
    """
    rope = samples.ropes[number] or Rope("none")
    weight_k = rope.paired_mean(samples.query_squares(number)) * _mean_square(k)
    weight_k = np.maximum(weight_k, LEAST_WEIGHT * weight_k.mean())
    weight_v = output_weights(file, samples.shape, number)[:, None] * _mean_square(v)
    return weight_k, np.repeat(np.maximum(weight_v, 1e-12), v.shape[2], axis=1)


def output_weights(file: GGUFFile, shape: ModelShape, number: int) -> Doubles:
    """How much of each KV head's values gets into the layer's output: the mean square gain, up to a factor."""
    layer = shape.layers[number]
    tensor = file.tensors.get(f"blk.{number}.attn_output.weight")
    if tensor is None or len(tensor.dims) != 2 or tensor.dims[0] % (layer.n_head_kv * layer.head_size_v):
        return np.ones(layer.n_head_kv)
    import gguf

    width, n_row = tensor.dims
    step = max(1, n_row // OUTPUT_ROWS)
    row_bytes = tensor.n_bytes // n_row
    with tensor.path.open("rb") as data:
        rows = np.empty((len(range(0, n_row, step)), row_bytes), np.uint8)
        for index, row in enumerate(range(0, n_row, step)):
            data.seek(tensor.offset + row * row_bytes)
            rows[index] = np.frombuffer(data.read(row_bytes), np.uint8)
    try:
        matrix = gguf.dequantize(rows, gguf.GGMLQuantizationType(tensor.type_number))
    except (NotImplementedError, ValueError):  # a type that gguf can't read
        return np.ones(layer.n_head_kv)
    squares = (np.asarray(matrix, dtype=np.float64) ** 2).sum(axis=0) * step
    by_head = squares.reshape(layer.n_head_kv, width // layer.n_head_kv).sum(axis=1)
    return np.asarray(by_head / layer.head_size_v)


def _mean_square(x: Floats) -> Doubles:
    """Of the vectors' lengths, by head, [n_head_kv, 1]."""
    return np.asarray((x.astype(np.float64) ** 2).sum(axis=2).mean(axis=0)[:, None])

"""How much an error of a layer's K or V counts: by what reads it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import Kind
from ..modelfile.gguf_file import GGUFFile
from ..modelfile.shape import ModelShape
from .capture import Rope, Samples

Doubles = NDArray[np.float64]

OUTPUT_ROWS = 1024  # of an output matrix, spread over it, that are looked at
LEAST_WEIGHT = 1e-3  # of the mean: where queries are next to nothing now, they may be something another time


def layer_weights(samples: Samples, number: int) -> dict[Kind, Doubles]:
    """Of squared errors of unit vectors of a layer's K and of V, [n_head_kv, head size]."""
    rope, layer = samples.ropes[number] or Rope("none"), samples.shape.layers[number]
    read = samples.read(number)
    weight_k = rope.paired_mean(read.k)
    weight_k = np.maximum(weight_k, LEAST_WEIGHT * weight_k.mean())
    weight_v = np.maximum(read.v, LEAST_WEIGHT * read.v.mean())
    return {
        "k": np.maximum(weight_k, 1e-30),
        "v": np.repeat(np.maximum(weight_v, 1e-30)[:, None], layer.head_size_v, axis=1),
    }


def output_gains(file: GGUFFile, shape: ModelShape) -> list[Doubles | None]:
    """Those of all layers."""
    return [output_gain(file, shape, number) for number in range(len(shape.layers))]


def output_gain(file: GGUFFile, shape: ModelShape, number: int) -> Doubles | None:
    """How much of each query head's values gets into the layer's output: the mean square gain, if it can be told."""
    layer = shape.layers[number]
    tensor = file.tensors.get(f"blk.{number}.attn_output.weight")
    if tensor is None or len(tensor.dims) != 2 or tensor.dims[0] % (layer.n_head_kv * layer.head_size_v):
        return None
    import gguf

    n_row = tensor.dims[1]
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
        return None
    squares = (np.asarray(matrix, dtype=np.float64) ** 2).sum(axis=0) * step
    return np.asarray(squares.reshape(-1, layer.head_size_v).mean(axis=1))

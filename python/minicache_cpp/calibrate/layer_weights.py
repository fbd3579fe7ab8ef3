"""How much an error in a layer's K or V counts, by the queries and the output matrix that it passes through."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import Kind
from ..modelfile.gguf_file import GGUFFile
from ..modelfile.shape import ModelShape
from .rope import Rope
from .samples import Samples

Doubles = NDArray[np.float64]

# the most rows of an output matrix that are used, spread evenly
OUTPUT_ROWS = 1024
# the least weight, relative to the mean: where queries are next to nothing on one text, they may not be on another
LEAST_WEIGHT = 1e-3


def layer_weights(samples: Samples, number: int) -> dict[Kind, Doubles]:
    """The weights of squared errors in the unit vectors of a layer's K and V, [n_head_kv, head size] each.

    Numbers of K that RoPE turns together share a weight.
    """
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
    """The output gains of all layers."""
    return [output_gain(file, shape, number) for number in range(len(shape.layers))]


def output_gain(file: GGUFFile, shape: ModelShape, number: int) -> Doubles | None:
    """The mean square gain of a layer's output matrix for the values of each query head, [n_head].

    Returns None where the file has no such matrix in the usual shape, or has it in a type that gguf cannot read.
    """
    layer = shape.layers[number]
    tensor = file.tensors.get(f"blk.{number}.attn_output.weight")
    n_v = layer.n_v
    if tensor is None or len(tensor.dims) != 2 or not n_v or tensor.dims[0] % n_v:
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
    except (NotImplementedError, ValueError):
        return None
    squares = (np.asarray(matrix, dtype=np.float64) ** 2).sum(axis=0) * step
    return np.asarray(squares.reshape(-1, layer.head_size_v).mean(axis=1))

"""The weights of a llama or qwen2 model as float32 arrays, read from its GGUF file."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minicache_cpp import MiniCacheError
from minicache_cpp.calibrate.rope import Rope
from minicache_cpp.modelfile.gguf_file import GGUFFile
from minicache_cpp.modelfile.shape import ModelShape
from minicache_cpp.native.model_shape import model_shape

Floats = NDArray[np.float32]

# which numbers of a head RoPE turns together, by architecture
ROPES = {"llama": "neighbours", "qwen2": "halves"}
# what the simulation computes with; a file with any other tensor is of a model that it does not cover
LAYER_TENSOR = re.compile(
    r"blk\.\d+\.((attn|ffn)_norm\.weight|attn_(q|k|v|output)\.(weight|bias)|ffn_(gate|up|down)\.weight)"
)
OTHER_TENSORS = ("token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight")


@dataclass(frozen=True)
class Weights:
    """A model's dequantized tensors, and what its keys say about how they are used."""

    shape: ModelShape
    # by name; matrices are [outputs, inputs]
    tensors: dict[str, Floats]
    rope: Rope
    # added to the mean square in RMS norms
    eps: float

    def __getitem__(self, name: str) -> Floats:
        return self.tensors[name]

    def layer(self, number: int) -> dict[str, Floats]:
        """The tensors of a layer, by the part of their name after the layer's number."""
        prefix = f"blk.{number}."
        return {name[len(prefix) :]: x for name, x in self.tensors.items() if name.startswith(prefix)}

    @property
    def output(self) -> Floats:
        """The matrix that makes logits, [n_vocab, n_embd]: the embedding's where the model has no other."""
        return self.tensors.get("output.weight", self.tensors["token_embd.weight"])


def read_weights(file: GGUFFile) -> Weights:
    """Reads and dequantizes all tensors. Raises MiniCacheError where the simulation does not cover the model."""
    if file.architecture not in ROPES:
        raise MiniCacheError(
            f"{file.path} is a {file.architecture} model; the simulation covers {' and '.join(ROPES)}"
        )
    strange = [
        name for name in file.tensors if not LAYER_TENSOR.fullmatch(name) and name not in OTHER_TENSORS
    ]
    if strange:
        raise MiniCacheError(f"{file.path} has a tensor {strange[0]}, which the simulation does not cover")
    if file.get("rope.scaling.type", "none") != "none":
        raise MiniCacheError(f"{file.path} scales RoPE, which the simulation does not cover")
    tensors = {name: _dequantized(file, name) for name in file.tensors}
    shape = model_shape(file)
    n_rot = shape.layers[0].n_rot
    factors = tensors.get("rope_freqs.weight", np.ones(n_rot // 2, np.float32))
    base = float(file.get("rope.freq_base", 10000.0))
    freq = base ** (-2 * np.arange(n_rot // 2) / n_rot) / factors
    rope = Rope(ROPES[file.architecture], tuple(freq.tolist()))
    return Weights(shape, tensors, rope, float(file.get("attention.layer_norm_rms_epsilon")))


def _dequantized(file: GGUFFile, name: str) -> Floats:
    import gguf

    tensor = file.tensors[name]
    rows = np.frombuffer(tensor.read(), np.uint8).reshape(*tensor.dims[:0:-1], -1)
    return np.asarray(gguf.dequantize(rows, gguf.GGMLQuantizationType(tensor.type_number)), np.float32)

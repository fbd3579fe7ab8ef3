"""What a model family is: sizes, further values of its file, its layers, and what the tests expect of its cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

from support.family_weights import Weights
from support.tiny_models import N_VOCAB, Array, Shape, add_shape, add_tokenizer, finish


@dataclass(frozen=True)
class Family:
    """A kind of model, of which `write` makes a tiny one with random weights.

    Every layer is in at least one of `grows`, `window`, `recurrent`, `reuses` and `cacheless`.
    """

    name: str
    build: Callable[[Weights], None] = field(repr=False)  # draws all weights
    shape: Shape
    grows: tuple[int, ...]  # layers with K and V of their own of the whole context
    window: tuple[int, ...] = ()  # layers with K and V of their own of a sliding window or chunk
    recurrent: tuple[int, ...] = ()  # layers with a recurrent state
    reuses: Mapping[int, int] = field(default_factory=dict)  # layers that read the cache of another: of which
    cacheless: tuple[int, ...] = ()  # layers without attention and recurrence
    coded: bool = True  # whether MiniCache can keep the layers that grow as codes
    values: Mapping[str, object] = field(default_factory=dict)  # keys of the file, without the architecture
    n_head_kv: Sequence[int] = ()  # of each layer, where layers differ
    n_ff: Sequence[int] = ()
    half: bool = False  # whether the file has the matrices in F16, for models that are not so tiny

    def __str__(self) -> str:
        return self.name

    @property
    def chooses_experts(self) -> bool:
        """Whether tokens have only some of the experts, so that rounding may change which."""
        return self.values.get("expert_used_count") != self.values.get("expert_count")

    def write(self, path: Path, seed: int = 0) -> Path:
        """Writes a model to a GGUF file and returns the path."""
        writer = gguf.GGUFWriter(path, self.shape.arch)
        # not the family's name: upstream has ideas of the vocabulary of some of them
        writer.add_name("tiny")
        types = gguf.LlamaFileType
        writer.add_file_type(types.MOSTLY_F16 if self.half else types.ALL_F32)
        writer.add_vocab_size(N_VOCAB)
        add_shape(writer, self.shape, self.n_head_kv, self.n_ff)
        for key, value in self.values.items():
            add_value(writer, f"{self.shape.arch}.{key}", value)
        add_tokenizer(writer)
        weights = Weights(self.shape, seed, self.n_head_kv, self.n_ff)
        self.build(weights)
        for name, weight in weights.tensors.items():
            halved = self.half and is_matrix(name, weight)
            writer.add_tensor(name, weight.astype(np.float16) if halved else weight)
        finish(writer)
        return path


def is_matrix(name: str, weight: Array) -> bool:
    """Whether a tensor may be in F16, unlike norms, biases and convolutions."""
    return weight.ndim > 1 and name.endswith(".weight") and "conv" not in name


def every(step: int, n_layer: int) -> tuple[int, ...]:
    """The last layer of each `step` layers."""
    return tuple(range(step - 1, n_layer, step))


def others(layers: Sequence[int], n_layer: int) -> tuple[int, ...]:
    """The layers that are not in `layers`."""
    return tuple(layer for layer in range(n_layer) if layer not in layers)


def add_value(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    """Writes a value as llama.cpp expects it of its Python type."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)

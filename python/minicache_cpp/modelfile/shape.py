"""What the size of a model's KV cache depends on: the sizes of its layers, from the header of its file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import MiniCacheError
from .gguf_file import MOST, MOST_LAYERS, GGUFFile

# architectures of which some layers may look back only a window
SLIDING_WINDOW = """
    afmoe cohere2 cohere2moe deepseek4 dflash dots3note exaone4 exaone-moe gemma-embedding gemma2 gemma3
    gemma3n gemma4 gemma4-assistant gpt-oss granite-swa laguna lfm2 llama4 maple mellum mimo2 modern-bert
    muse-glimmer olmo2 plamo3 smallthinker spark2-5 step35
""".split()  # noqa: SIM905


# what a layer keeps: all tokens, a window of the latest ones, a recurrent state, or nothing
LayerKind = Literal["grows", "window", "state", "none"]

# beginnings of the keys that only models with recurrent layers have
RECURRENT = ("ssm.", "wkv.", "shortconv.", "kda.", "full_attention_interval", "attention.recurrent_layers")


@dataclass(frozen=True)
class Layer:
    """What one layer keeps: K and V of these sizes, of no heads where it keeps none, and for how long."""

    n_head_kv: int
    head_size_k: int
    head_size_v: int
    # values of a head of K that RoPE turns
    n_rot: int = 0
    kind: LayerKind = "grows"
    # of a sequence's recurrent state
    state_bytes: int = 0

    @property
    def grows(self) -> bool:
        """Whether the layer keeps the K and V of all tokens."""
        return self.n_head_kv > 0 and self.kind == "grows"

    @property
    def n_k(self) -> int:
        """Values of K of a token."""
        return self.n_head_kv * self.head_size_k

    @property
    def n_v(self) -> int:
        """Values of V of a token."""
        return self.n_head_kv * self.head_size_v


@dataclass(frozen=True)
class ModelShape:
    """What the size of a model's cache depends on."""

    architecture: str
    n_ctx_train: int
    n_head: int
    layers: list[Layer] = field(repr=False)
    window: int = 0  # tokens that sliding-window layers look back, 0 without such layers
    # whether layers may differ in what they keep, in a way that the header does not show
    mixed: bool = False
    unknown: str = ""  # why this model's cache is not coded and its size not known, "" where it is

    @property
    def attention_layers(self) -> list[Layer]:
        """The layers that have a KV cache."""
        return [layer for layer in self.layers if layer.n_head_kv]

    def growing(self) -> ModelShape:
        """The same model, with only the layers whose cache grows with the context."""
        nothing = Layer(0, 0, 0, kind="none")
        return replace(self, layers=[layer if layer.grows else nothing for layer in self.layers])

    def divides_into(self, block: int) -> bool:
        """Whether all heads of K and V are whole blocks of so many numbers, as a cache type of such blocks needs."""
        return all(
            size % block == 0
            for layer in self.attention_layers
            for size in (layer.head_size_k, layer.head_size_v)
        )


def header_shape(file: GGUFFile) -> ModelShape:
    """The shape as the header has it, which shows the layers of a `mixed` model as if they were all of one kind.

    Raises MiniCacheError if the header is not that of a language model.
    """
    n_layer = _whole(file, "block_count", MOST_LAYERS)
    heads = _per_layer(file, "attention.head_count", n_layer)
    heads_kv = _per_layer(file, "attention.head_count_kv", n_layer, heads)
    n_head = max(heads, default=0)
    keys = {key.removeprefix(f"{file.architecture}.") for key in file.keys}
    size = _whole(file, "embedding_length") // n_head if n_head else 0
    size_k = file.number("attention.key_length", size)
    size_v = file.number("attention.value_length", size)
    n_rot = file.number("rope.dimension_count") or (size_k if "rope.freq_base" in keys else 0)
    return ModelShape(
        architecture=file.architecture,
        n_ctx_train=file.number("context_length"),
        n_head=n_head,
        layers=[Layer(n, size_k, size_v, n_rot) for n in heads_kv],
        mixed=file.architecture in SLIDING_WINDOW or any(key.startswith(RECURRENT) for key in keys),
        unknown=_unknown(file, heads_kv),
    )


def _whole(file: GGUFFile, key: str, most: int = MOST) -> int:
    if file.get(key) is None:
        raise MiniCacheError(
            f"{file.path} has no {file.architecture}.{key}; it is not a language model's file"
        )
    return file.number(key, most=most)


def _per_layer(file: GGUFFile, key: str, n_layer: int, default: list[int] | None = None) -> list[int]:
    """A number for each layer; the file may give one for all."""
    value = file.get(key)
    if isinstance(value, list) and len(value) >= n_layer:
        if all(isinstance(one, int) and 0 <= one <= MOST for one in value):
            return [int(one) for one in value[:n_layer]]
        raise MiniCacheError(
            f"{file.path} is damaged: {file.architecture}.{key} has numbers that make no sense"
        )
    if isinstance(value, int):
        return [file.number(key)] * n_layer
    return default if default is not None else [0] * n_layer


def _unknown(file: GGUFFile, heads_kv: list[int]) -> str:
    if file.get("attention.kv_lora_rank"):
        return "its attention is latent (MLA): all heads' K and V share one row, which is not merged"
    if file.get("attention.causal") is False:
        return "it is an encoder, which keeps no KV cache"
    if not any(heads_kv):
        return "its header names no KV heads"
    return ""

"""Tiny GGUF models with random weights, made in a fraction of a second.

The weights are also available as NumPy arrays, so that the oracle can run the same model. Besides plain random
models there are two in which merging a pair loses nothing, or loses something only at known tokens:

* `parallel`: K and V of both layers of a pair have the same direction and different magnitudes, by construction.
* `planted`: like `parallel`, except at the tokens `PLANTED`, where the two layers have nothing in common.

In a third, `turned`, the second layer of each pair of a `parallel` model has its K and V in another basis: merging
loses nothing only where that basis is undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

# like a SentencePiece vocabulary: three control tokens, the bytes, and a few pieces
PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "\u2581",
    "a",
    "b",
    "c",
    "\u2581a",
]
N_VOCAB = len(PIECES)
BOS, EOS = 1, 2
FIRST_TOKEN = 3  # prompts use no control tokens
PLANTED = (200, 201, 202, 203)  # the tokens that a `planted` model treats differently

N_PRIVATE = 32  # residual dimensions of a `parallel` model that no K or V reads


@dataclass(frozen=True)
class Shape:
    """The sizes of a tiny model. By default two heads share a KV head, and the head size is 32."""

    arch: str = "llama"
    n_layer: int = 6
    n_embd: int = 128
    n_head: int = 4
    n_head_kv: int = 2
    head_size: int = 32
    value_size: int = 0  # of V, if it is not the head size
    n_ff: int = 160
    n_ctx_train: int = 4096
    rope_base: float = 10000.0
    eps: float = 1e-5

    @property
    def rope(self) -> str:
        """How RoPE pairs the numbers of a head: neighbours, halves, or none (ALiBi)."""
        return {
            "llama": "neighbours",
            "deci": "neighbours",
            "qwen2": "halves",
            "qwen3": "halves",
            "refact": "none",
        }[self.arch]

    @property
    def max_bias(self) -> float:
        return 8.0 if self.arch == "refact" else 0.0


@dataclass(frozen=True)
class TinyModel:
    shape: Shape
    weights: dict[str, Array] = field(repr=False)

    def write(self, path: Path) -> Path:
        """Writes the model to a GGUF file in F32 and returns the path."""
        shape = self.shape
        writer = gguf.GGUFWriter(path, shape.arch)
        writer.add_name("tiny")
        add_shape(writer, shape)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_vocab_size(N_VOCAB)
        if shape.rope != "none":
            writer.add_rope_dimension_count(shape.head_size)
            writer.add_rope_freq_base(shape.rope_base)
        add_tokenizer(writer)
        for name, weight in self.weights.items():
            writer.add_tensor(name, weight)
        finish(writer)
        return path


class Draw:
    """Draws random weights. A matrix leaves the size of what it multiplies about as it is, times its gain."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def matrix(self, n_out: int, n_in: int, gain: float = 1.0) -> Array:
        return (self.rng.standard_normal((n_out, n_in)) * gain / np.sqrt(n_in)).astype(np.float32)

    def norm(self, size: int, gain: float = 1.0) -> Array:
        return (self.rng.uniform(0.7, 1.3, size) * gain).astype(np.float32)

    def normal(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(np.float32)


def random_model(seed: int = 0, **shape: object) -> TinyModel:
    """Makes a model with independent random weights, scaled so that its logits and attention are well spread."""
    spec = Shape(**shape)  # type: ignore[arg-type]
    draw = Draw(seed)
    matrix = draw.matrix
    n_q, n_kv = spec.n_head * spec.head_size, spec.n_head_kv * spec.head_size
    weights = {"token_embd.weight": draw.normal(N_VOCAB, spec.n_embd)}
    for layer in range(spec.n_layer):
        block = f"blk.{layer}"
        weights[f"{block}.attn_norm.weight"] = draw.norm(spec.n_embd)
        # large queries, so that attention prefers some tokens
        weights[f"{block}.attn_q.weight"] = matrix(n_q, spec.n_embd, 1.5)
        weights[f"{block}.attn_k.weight"] = matrix(n_kv, spec.n_embd)
        weights[f"{block}.attn_v.weight"] = matrix(n_kv, spec.n_embd)
        if spec.arch == "qwen2":
            for name, size in (("q", n_q), ("k", n_kv), ("v", n_kv)):
                weights[f"{block}.attn_{name}.bias"] = draw.normal(size)
        weights[f"{block}.attn_output.weight"] = matrix(spec.n_embd, n_q)
        weights[f"{block}.ffn_norm.weight"] = draw.norm(spec.n_embd)
        for name in ("gate", "up"):
            weights[f"{block}.ffn_{name}.weight"] = matrix(spec.n_ff, spec.n_embd)
        weights[f"{block}.ffn_down.weight"] = matrix(spec.n_embd, spec.n_ff)
    weights["output_norm.weight"] = draw.norm(spec.n_embd)
    weights["output.weight"] = matrix(N_VOCAB, spec.n_embd, 3.0)
    return TinyModel(spec, weights)


def default_pairs(n_layer: int, start: float = 0.5) -> list[tuple[int, int]]:
    """The pairs (S, S + 1), (S + 2, S + 3), ... from the start layer S on. An odd last layer stays plain."""
    return [(layer, layer + 1) for layer in range(int(start * n_layer), n_layer - 1, 2)]


def parallel_model(seed: int = 0, start: float = 0.5, equal: bool = False, **shape: object) -> TinyModel:
    """Makes a model whose pairs have parallel K and V: one direction, two magnitudes.

    Layer a writes only to residual dimensions that no K or V reads. So layer b's K and V differ from layer a's only
    by the factor that the norm makes of the added length. With `equal`, layer a writes nothing, and K and V of both
    layers are the same to the last bit.
    """
    model = random_model(seed, **shape)
    weights = model.weights
    shared = model.shape.n_embd - N_PRIVATE
    for a, b in default_pairs(model.shape.n_layer, start):
        for name in ("attn_k.weight", "attn_k.bias", "attn_v.weight", "attn_v.bias", "attn_norm.weight"):
            if f"blk.{a}.{name}" in weights:
                weights[f"blk.{b}.{name}"] = weights[f"blk.{a}.{name}"]
        weights[f"blk.{a}.attn_norm.weight"][shared:] = 0  # and layer b's, which is the same array
        for name in ("attn_output", "ffn_down"):
            weights[f"blk.{a}.{name}.weight"][:shared] = 0
            weights[f"blk.{a}.{name}.weight"][shared:] *= 0 if equal else 5
    return model


def planted_model(seed: int = 0, start: float = 0.5, **shape: object) -> TinyModel:
    """Makes a `parallel` model whose layers differ at the tokens `PLANTED`, and only there.

    One residual dimension marks these tokens from the embedding to the last layer, because nothing else writes there.
    K and V of the deeper layer of a pair depend on the mark in another way than those of the first.
    """
    model = parallel_model(seed, start, **shape)
    weights = model.weights
    rng = np.random.default_rng([seed, 1])
    mark = 0
    weights["token_embd.weight"][:, mark] = 0
    weights["token_embd.weight"][list(PLANTED), mark] = 12
    for layer in range(model.shape.n_layer):
        for name in ("attn_output", "ffn_down"):
            weights[f"blk.{layer}.{name}.weight"][mark] = 0
    for a, b in default_pairs(model.shape.n_layer, start):
        for name in ("attn_k", "attn_v"):
            for layer in (a, b):
                weight = weights[f"blk.{layer}.{name}.weight"].copy()
                weight[:, mark] = rng.standard_normal(len(weight)) * 0.2
                weights[f"blk.{layer}.{name}.weight"] = weight
    return model


def turns(shape: Shape, seed: int = 0) -> dict[tuple[int, str], Array]:
    """The orthogonal matrices [n_head_kv, d, d] by which K and V of a `turned` model's deeper layers are multiplied."""
    rng = np.random.default_rng([seed, 6])
    size = shape.head_size
    return {
        (b, kind): np.linalg.qr(rng.standard_normal((shape.n_head_kv, size, size)))[0].astype(np.float32)
        for _, b in default_pairs(shape.n_layer)
        for kind in "kv"
    }


def turned_model(seed: int = 0) -> TinyModel:
    """Makes a `parallel` model whose deeper layers have K and V in a basis of their own, with unchanged logits.

    It has no RoPE, so that K stays in its basis.
    """
    model = parallel_model(seed, arch="refact", n_layer=8)
    shape, weights = model.shape, model.weights
    group = shape.n_head // shape.n_head_kv
    for (b, kind), turn in turns(shape, seed).items():
        block, per_query = f"blk.{b}", np.repeat(turn, group, axis=0)
        turned = {"k": {"attn_k": turn, "attn_q": per_query}, "v": {"attn_v": turn}}[kind]
        for name, matrix in turned.items():
            weight = weights[f"{block}.{name}.weight"]
            heads = weight.reshape(len(matrix), shape.head_size, -1)
            weights[f"{block}.{name}.weight"] = (matrix @ heads).reshape(weight.shape)
        if kind == "v":
            weight = weights[f"{block}.attn_output.weight"]
            heads = weight.reshape(len(weight), shape.n_head, shape.head_size)
            back = np.einsum("onj,nij->oni", heads, per_query)
            weights[f"{block}.attn_output.weight"] = back.reshape(weight.shape)
    return model


def add_shape(
    writer: gguf.GGUFWriter, shape: Shape, n_head_kv: Sequence[int] = (), n_ff: Sequence[int] = ()
) -> None:
    """Writes the sizes that every architecture here has. `n_head_kv` and `n_ff` are of each layer, if layers differ."""
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(n_ff or shape.n_ff)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(n_head_kv or shape.n_head_kv)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.value_size or shape.head_size)
    writer.add_layer_norm_rms_eps(shape.eps)


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    kind = gguf.TokenType
    types = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL, *[kind.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(PIECES)
    writer.add_token_scores([-float(i) for i in range(N_VOCAB)])
    writer.add_token_types([*types, *[kind.NORMAL] * (N_VOCAB - len(types))])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_unk_token_id(0)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prompt(n_tokens: int, seed: int = 0) -> list[int]:
    """Random tokens that are neither control tokens nor planted."""
    return np.random.default_rng([seed, 2]).integers(FIRST_TOKEN, min(PLANTED), n_tokens).tolist()

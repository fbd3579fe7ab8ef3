"""Families in which most layers attend to a sliding window, and only a few to the whole context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from support.family_table import Family, every, others
from support.family_weights import N_EXPERT, Weights
from support.tiny_models import N_VOCAB, Shape

WINDOW = 32
GEMMA4_HEAD = 64  # of its global layers; the others have the half
N_INPUT = 16  # numbers of a layer's own input in small Gemma 4


def gemma_layer(weights: Weights, layer: int, **attention: object) -> None:
    weights.norms(layer, "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
    weights.attention(layer, **attention)  # type: ignore[arg-type]
    weights.feed_forward(layer)


def small(shape: Shape) -> float:
    """The size of embeddings that Gemma's factor brings to 1."""
    return float(shape.n_embd**-0.5)


def gemma2(weights: Weights) -> None:
    # the output matrix is the embeddings, so the last norm has to make the logits large enough
    weights.ends(tied=True, embedding=small(weights.shape), gain=3.0)
    for layer in range(weights.shape.n_layer):
        gemma_layer(weights, layer)


def gemma3(weights: Weights) -> None:
    weights.ends(embedding=small(weights.shape))
    for layer in range(weights.shape.n_layer):
        gemma_layer(weights, layer, qk_norm=1.5)


def gpt_oss(weights: Weights) -> None:
    weights.ends()
    shape = weights.shape
    for layer in range(shape.n_layer):
        weights.norms(layer, "attn_norm", "post_attention_norm")
        weights.attention(layer, bias=True, out_bias=True)
        weights.tensors[f"blk.{layer}.attn_sinks.weight"] = weights.draw.normal(shape.n_head)
        weights.experts(layer, bias=True)


def gemma4(weights: Weights, step: int = 3, window_size: int = 32) -> None:
    """The dense one: K of the global layers is V too, but for the norm, and they have fewer and larger heads.

    The last of each `step` layers is global; heads of the others have `window_size` numbers.
    """
    shape = weights.shape
    weights.ends(embedding=small(shape))
    turned_in_part(weights, shape.head_size)
    for layer in range(shape.n_layer):
        whole = layer in every(step, shape.n_layer)
        size = shape.head_size if whole else window_size
        gemma_layer(weights, layer, head_size=size, qk_norm=unscaled(size), parts="qk" if whole else "qkv")
        weights.norm(f"blk.{layer}.layer_output_scale", 1)


def gemma4_shared(weights: Weights) -> None:
    """The small one: the last layers have queries only, and every layer has an input of its own for each token."""
    shape, draw, tensors = weights.shape, weights.draw, weights.tensors
    weights.ends(tied=True, embedding=small(shape), gain=3.0)
    turned_in_part(weights, GEMMA4_HEAD)
    n_inputs = N_INPUT * shape.n_layer
    tensors["per_layer_token_embd.weight"] = draw.normal(N_VOCAB, n_inputs) * np.float32(N_INPUT**-0.5)
    weights.matrix("per_layer_model_proj", n_inputs, shape.n_embd)
    weights.norm("per_layer_proj_norm", N_INPUT)
    for layer in range(shape.n_layer):
        size = GEMMA4_HEAD if layer in every(3, 15) else 32
        gemma_layer(
            weights, layer, head_size=size, qk_norm=unscaled(size), parts="qkv" if layer < 12 else "q"
        )
        weights.matrix(f"blk.{layer}.inp_gate", N_INPUT, shape.n_embd)
        weights.matrix(f"blk.{layer}.proj", shape.n_embd, N_INPUT)
        weights.norms(layer, "post_norm")


def gemma3n(weights: Weights) -> None:
    """Four residual streams, of which a layer reads one; the sizes of what joins them are fixed in upstream."""
    shape, draw, tensors = weights.shape, weights.draw, weights.tensors
    n_streams, n_input, rank = 4, 256, 64
    weights.ends(embedding=small(shape))
    table = draw.normal(N_VOCAB, n_input * shape.n_layer) * np.float32(n_input**-0.5)
    tensors["per_layer_token_embd.weight"] = table.astype(np.float16)  # most of the file
    weights.matrix("per_layer_model_proj", n_input * shape.n_layer, shape.n_embd)
    weights.norm("per_layer_proj_norm", n_input)
    for name in ("altup_proj", "altup_unembd_proj"):
        streams = [draw.matrix(shape.n_embd, shape.n_embd) for _ in range(n_streams - 1)]
        tensors[f"{name}.weight"] = np.stack(streams)
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        gemma_layer(weights, layer, qk_norm=unscaled(shape.head_size))
        if layer < 10:
            # upstream lets 5 % of the numbers through, and so few would make the logits jump
            tensors[f"{block}.post_ffw_norm.weight"] *= np.float32(0.1)
        weights.norms(layer, "post_norm", "altup_correct_scale", "altup_router_norm", "laurel_post_norm")
        weights.matrix(f"{block}.inp_gate", n_input, shape.n_embd)
        weights.matrix(f"{block}.proj", shape.n_embd, n_input)
        weights.matrix(f"{block}.laurel_l", rank, shape.n_embd)
        weights.matrix(f"{block}.laurel_r", shape.n_embd, rank)
        weights.matrix(f"{block}.altup_router", n_streams, shape.n_embd)
        weights.matrix(f"{block}.altup_predict_coef", n_streams**2, n_streams, 0.1)
        weights.matrix(f"{block}.altup_correct_coef", n_streams, n_streams, 0.1)


def unscaled(size: int) -> float:
    """The size of normalised queries for attention that does not divide by the root of the head size."""
    return float(1.5 * size**-0.5)


def turned_in_part(weights: Weights, size: int) -> None:
    """Factors by which RoPE turns the first quarter of the pairs of a head and leaves the others alone."""
    factors = np.full(size // 2, 1e30, np.float32)
    factors[: size // 8] = 1
    weights.tensors["rope_freqs.weight"] = factors


def cohere2(weights: Weights) -> None:
    weights.ends(tied=True)
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm")
        weights.attention(layer)
        weights.feed_forward(layer)


def olmo3(weights: Weights) -> None:
    weights.ends()
    shape = weights.shape
    for layer in range(shape.n_layer):
        weights.norms(layer, "post_attention_norm", "post_ffw_norm")
        weights.attention(layer)
        # unlike others, they are of all heads together
        weights.norm(f"blk.{layer}.attn_q_norm", shape.n_head * shape.head_size, 1.5)
        weights.norm(f"blk.{layer}.attn_k_norm", shape.n_head_kv * shape.head_size)
        weights.feed_forward(layer)


def llama4(weights: Weights) -> None:
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm")
        weights.attention(layer)
        if layer % 2:
            weights.experts(layer)
            weights.shared_expert(layer, gated=False)
        else:
            weights.feed_forward(layer)


def alternate(step: int, n_layer: int) -> dict[str, Sequence[int]]:
    """Global layers, which are the last of each `step` layers, and layers with a window, which are the others."""
    return {"grows": every(step, n_layer), "window": others(every(step, n_layer), n_layer)}


GEMMA4: dict[str, object] = {
    "attention.sliding_window": WINDOW,
    "attention.sliding_window_pattern": [True, True, False] * 4,
    "attention.key_length_swa": 32,
    "attention.value_length_swa": 32,
    "embedding_length_per_layer_input": 0,
    "final_logit_softcapping": 30.0,
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
    "rope.dimension_count": GEMMA4_HEAD,
    "rope.dimension_count_swa": 32,
}

FAMILIES = (
    Family(
        "gemma2",
        gemma2,
        Shape("gemma2", n_layer=8, n_embd=64, n_ff=96),
        **alternate(2, 8),
        values={
            "attention.sliding_window": WINDOW,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    Family(
        "gemma3",
        gemma3,
        Shape("gemma3", n_layer=24, n_embd=64, n_ff=32),
        **alternate(6, 24),
        values={
            "attention.sliding_window": WINDOW,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 1e4,
        },
    ),
    Family(
        "gpt-oss",
        gpt_oss,
        Shape("gpt-oss", n_layer=8, n_embd=64, head_size=64, n_ff=32),
        **alternate(2, 8),
        values={
            "attention.sliding_window": WINDOW,
            "expert_count": N_EXPERT,
            "expert_used_count": 2,
            "expert_feed_forward_length": 32,
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 1024,
        },
    ),
    Family(
        "gemma3n",
        gemma3n,
        Shape("gemma3n", n_layer=25, n_embd=32, n_head=2, n_ff=32),
        # upstream has the layers from 20 on read the caches of earlier ones; their own K and V are not used
        **alternate(5, 20),
        reuses={20: 18, 21: 18, 22: 18, 23: 18, 24: 19},
        values={
            "attention.sliding_window": WINDOW,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 1e4,
        },
    ),
    Family(
        "gemma4",
        gemma4,
        Shape("gemma4", n_layer=12, n_embd=64, head_size=GEMMA4_HEAD, n_ff=32),
        **alternate(3, 12),
        n_head_kv=(4, 4, 2) * 4,
        values=GEMMA4,
    ),
    Family(
        "gemma4-shared",
        gemma4_shared,
        Shape("gemma4", n_layer=15, n_embd=64, head_size=GEMMA4_HEAD, n_ff=32),
        **alternate(3, 12),
        reuses={12: 10, 13: 10, 14: 11},
        n_ff=(32,) * 12 + (64,) * 3,
        values={
            **GEMMA4,
            "attention.sliding_window_pattern": [True, True, False] * 5,
            "attention.shared_kv_layers": 3,
            "embedding_length_per_layer_input": N_INPUT,
        },
    ),
    Family(
        "cohere2",
        cohere2,
        Shape("cohere2", n_layer=12, n_ff=32),
        **alternate(4, 12),
        values={
            "attention.sliding_window": WINDOW,
            "attention.layer_norm_epsilon": 1e-5,
            "logit_scale": 0.25,
            "rope.freq_base": 50000.0,
        },
    ),
    Family(
        "olmo3",
        olmo3,
        Shape("olmo2", n_layer=12, n_ff=32),
        **alternate(4, 12),
        values={
            "attention.sliding_window": WINDOW,
            "rope.freq_base": 500000.0,
            # of the global layers only
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 1024,
        },
    ),
    Family(
        "llama4",
        llama4,
        Shape("llama4", n_layer=12, n_embd=64, n_ff=32),
        # the chunks have 8192 tokens whatever the file says, so that here they hold the whole context
        **alternate(4, 12),
        values={
            "interleave_moe_layer_step": 2,
            "expert_count": N_EXPERT,
            "expert_used_count": 1,
            "expert_feed_forward_length": 32,
            "rope.freq_base": 500000.0,
        },
    ),
)

"""Families in which most layers attend to a sliding window, and only a few to the whole context."""

from __future__ import annotations

from collections.abc import Sequence

from support.family_table import Family, every, others
from support.family_weights import N_EXPERT, Weights
from support.tiny_models import Shape

WINDOW = 32


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


def alternate(step: int, n_layer: int) -> dict[str, Sequence[int]]:
    """Global layers, which are the last of each `step` layers, and layers with a window, which are the others."""
    return {"grows": every(step, n_layer), "window": others(every(step, n_layer), n_layer)}


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
        # here the first of two layers has the window
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
)

"""Families without windows and recurrent layers, which turn K in different ways."""

from __future__ import annotations

from support.family_table import Family
from support.family_weights import Weights
from support.tiny_models import Shape


def qwen3vl(weights: Weights) -> None:
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm")
        weights.attention(layer, qk_norm=1.5)
        weights.feed_forward(layer)


FAMILIES = (
    Family(
        "qwen3vl",
        qwen3vl,
        Shape("qwen3vl", n_layer=6, n_embd=64, head_size=64, n_ff=96),
        grows=tuple(range(6)),
        values={"rope.freq_base": 5e6, "rope.dimension_sections": [12, 10, 10, 0]},
    ),
)

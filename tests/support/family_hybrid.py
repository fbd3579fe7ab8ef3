"""Families in which most layers have a recurrent state, and only a few have attention."""

from __future__ import annotations

import numpy as np

from support.family_table import Family, every, others
from support.family_weights import Recurrence, Weights
from support.tiny_models import Shape

DELTA_NET = Recurrence(d_inner=128, d_state=32, n_head=4, n_group=2)


def delta_net(weights: Weights, layer: int, size: Recurrence, joined: bool = False) -> None:
    """A gated delta net. With `joined`, beta and alpha come from one matrix."""
    n_embd, block = weights.shape.n_embd, f"blk.{layer}"
    n_conv = 2 * size.n_group * size.d_state + size.d_inner
    weights.matrix(f"{block}.attn_qkv", n_conv, n_embd)
    weights.matrix(f"{block}.attn_gate", size.d_inner, n_embd)
    weights.matrix(f"{block}.ssm_conv1d", n_conv, size.d_conv, 1.5)
    for name in ("ba",) if joined else ("beta", "alpha"):
        weights.matrix(f"{block}.ssm_{name}", size.n_head * (2 if joined else 1), n_embd)
    rng = weights.draw.rng
    # slow decay, so that tokens long past still matter
    weights.tensors[f"{block}.ssm_a"] = -rng.uniform(0.01, 0.1, size.n_head).astype(np.float32)
    weights.tensors[f"{block}.ssm_dt.bias"] = weights.draw.normal(size.n_head)
    weights.norm(f"{block}.ssm_norm", size.d_state)
    weights.matrix(f"{block}.ssm_out", n_embd, size.d_inner)


def qwen35(weights: Weights) -> None:
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "post_attention_norm")
        if layer % 4 == 3:
            weights.attention(layer, gated=True, qk_norm=1.5)
        else:
            delta_net(weights, layer, DELTA_NET)
        weights.feed_forward(layer)


FAMILIES = (
    Family(
        "qwen35",
        qwen35,
        Shape("qwen35", n_layer=16, n_embd=64, n_head=2, head_size=64, n_ff=64),
        grows=every(4, 16),
        recurrent=others(every(4, 16), 16),
        values={
            **DELTA_NET.values(),
            "full_attention_interval": 4,
            "rope.freq_base": 1e7,
            "rope.dimension_count": 32,
            "rope.dimension_sections": [6, 5, 5, 0],
        },
    ),
)

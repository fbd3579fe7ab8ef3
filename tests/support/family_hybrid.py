"""Families in which most layers have a recurrent state, and only a few have attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from support.family_table import Family, every, others
from support.family_weights import N_EXPERT, Recurrence, Weights
from support.tiny_models import Array, Shape

MAMBA2 = Recurrence(d_inner=128, d_state=32, n_head=4, n_group=2)
MAMBA = Recurrence(d_inner=256, d_state=16, n_head=8)
DELTA_NET = Recurrence(d_inner=128, d_state=32, n_head=4, n_group=2)


def decay(weights: Weights, *shape: int) -> Array:
    """Rates of slow decay, so that tokens long past still matter."""
    return -weights.draw.rng.uniform(0.01, 0.1, shape).astype(np.float32)


def delta_net(weights: Weights, layer: int, size: Recurrence, joined: bool = False) -> None:
    """A gated delta net. With `joined`, beta and alpha come from one matrix."""
    n_embd, block = weights.shape.n_embd, f"blk.{layer}"
    n_conv = 2 * size.n_group * size.d_state + size.d_inner
    weights.matrix(f"{block}.attn_qkv", n_conv, n_embd)
    weights.matrix(f"{block}.attn_gate", size.d_inner, n_embd)
    weights.matrix(f"{block}.ssm_conv1d", n_conv, size.d_conv, 1.5)
    for name in ("ba",) if joined else ("beta", "alpha"):
        weights.matrix(f"{block}.ssm_{name}", size.n_head * (2 if joined else 1), n_embd)
    weights.tensors[f"{block}.ssm_a"] = decay(weights, size.n_head)
    weights.tensors[f"{block}.ssm_dt.bias"] = weights.draw.normal(size.n_head)
    weights.norm(f"{block}.ssm_norm", size.d_state)
    weights.matrix(f"{block}.ssm_out", n_embd, size.d_inner)


def mamba2(weights: Weights, layer: int, size: Recurrence) -> None:
    n_embd, block, draw = weights.shape.n_embd, f"blk.{layer}", weights.draw
    n_conv = size.d_inner + 2 * size.n_group * size.d_state
    weights.matrix(f"{block}.ssm_in", size.d_inner + n_conv + size.n_head, n_embd)
    weights.matrix(f"{block}.ssm_conv1d", n_conv, size.d_conv, 1.5, bias=True)
    weights.tensors[f"{block}.ssm_dt.bias"] = draw.normal(size.n_head)
    weights.tensors[f"{block}.ssm_a"] = decay(weights, size.n_head, 1)
    weights.tensors[f"{block}.ssm_d"] = draw.norm(size.n_head)[:, None]
    norms = draw.norm(size.d_inner).reshape(size.n_group, -1)
    weights.tensors[f"{block}.ssm_norm.weight"] = norms
    weights.matrix(f"{block}.ssm_out", n_embd, size.d_inner)


def mamba(weights: Weights, layer: int, size: Recurrence, norms: bool) -> None:
    """The first Mamba. With `norms`, what the state is computed from is normalised."""
    n_embd, block, draw = weights.shape.n_embd, f"blk.{layer}", weights.draw
    weights.matrix(f"{block}.ssm_in", 2 * size.d_inner, n_embd)
    weights.matrix(f"{block}.ssm_conv1d", size.d_inner, size.d_conv, 1.5, bias=True)
    weights.matrix(f"{block}.ssm_x", size.n_head + 2 * size.d_state, size.d_inner, 2.0)
    weights.matrix(f"{block}.ssm_dt", size.d_inner, size.n_head, bias=True)
    if norms:
        for name, n in (("dt", size.n_head), ("b", size.d_state), ("c", size.d_state)):
            weights.norm(f"{block}.ssm_{name}_norm", n)
    weights.tensors[f"{block}.ssm_a"] = decay(weights, size.d_inner, size.d_state)
    weights.tensors[f"{block}.ssm_d"] = draw.norm(size.d_inner)
    weights.matrix(f"{block}.ssm_out", n_embd, size.d_inner)


def short_convolution(weights: Weights, layer: int, length: int) -> None:
    n_embd, block = weights.shape.n_embd, f"blk.{layer}.shortconv"
    weights.matrix(f"{block}.conv", n_embd, length)
    weights.matrix(f"{block}.in_proj", 3 * n_embd, n_embd)
    weights.matrix(f"{block}.out_proj", n_embd, n_embd)


def qwen(weights: Weights, moe: bool, joined: bool = False) -> None:
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "post_attention_norm")
        if layer % 4 == 3:
            weights.attention(layer, gated=True, qk_norm=1.5)
        else:
            delta_net(weights, layer, DELTA_NET, joined)
        if moe:
            weights.experts(layer)
            weights.shared_expert(layer, gated=True)
        else:
            weights.feed_forward(layer)


def qwen35(weights: Weights) -> None:
    qwen(weights, moe=False)


def qwen35moe(weights: Weights) -> None:
    qwen(weights, moe=True)


def qwen3next(weights: Weights) -> None:
    qwen(weights, moe=True, joined=True)


def falcon_h1(weights: Weights) -> None:
    """Attention and Mamba side by side in every layer."""
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm")
        # upstream wants this name as it is
        weights.tensors[f"blk.{layer}.ffn_norm"] = weights.tensors.pop(f"blk.{layer}.ffn_norm.weight")
        mamba2(weights, layer, MAMBA2)
        weights.attention(layer)
        weights.feed_forward(layer)


def one_or_other(weights: Weights, recurrent: Callable[[int], None], qk_norm: float = 0.0) -> None:
    """Layers that have attention, or `recurrent` where they have no KV heads, and then a feed-forward."""
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm")
        if weights.n_head_kv[layer]:
            weights.attention(layer, qk_norm=qk_norm)
        else:
            recurrent(layer)
        weights.feed_forward(layer)


def granite_hybrid(weights: Weights) -> None:
    weights.ends()
    one_or_other(weights, lambda layer: mamba2(weights, layer, MAMBA2))


def nemotron_h(weights: Weights) -> None:
    """Each layer is one of three things: Mamba, attention or feed-forward."""
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm")
        if weights.n_ff[layer]:
            weights.feed_forward(layer, parts="up")
        elif weights.n_head_kv[layer]:
            weights.attention(layer)
        else:
            mamba2(weights, layer, MAMBA2)


def jamba(weights: Weights) -> None:
    weights.ends()
    one_or_other(weights, lambda layer: mamba(weights, layer, MAMBA, norms=True))


def lfm2(weights: Weights) -> None:
    weights.ends(norm="token_embd_norm")
    one_or_other(weights, lambda layer: short_convolution(weights, layer, 3), qk_norm=2.5)


def mamba_only(weights: Weights) -> None:
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm")
        mamba(weights, layer, MAMBA, norms=False)


QWEN: dict[str, object] = {
    **DELTA_NET.values(),
    "full_attention_interval": 4,
    "rope.freq_base": 1e7,
    "rope.dimension_count": 32,  # of a head of 64
}
QWEN_MOE: dict[str, object] = {
    "expert_count": N_EXPERT,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "expert_shared_feed_forward_length": 32,
}
SECTIONS: dict[str, object] = {"rope.dimension_sections": [6, 5, 5, 0]}
LFM2: dict[str, object] = {"shortconv.l_cache": 3, "rope.freq_base": 1e6}

ALTERNATE = {"grows": every(2, 8), "recurrent": others(every(2, 8), 8)}
ONE_IN_FOUR = {"grows": every(4, 12), "recurrent": others(every(4, 12), 12)}

FAMILIES = (
    Family(
        "qwen35",
        qwen35,
        Shape("qwen35", n_layer=16, n_embd=64, n_head=2, head_size=64, n_ff=32),
        grows=every(4, 16),
        recurrent=others(every(4, 16), 16),
        values={**QWEN, **SECTIONS},
    ),
    Family(
        "qwen35moe",
        qwen35moe,
        Shape("qwen35moe", n_layer=12, n_embd=64, n_head=2, head_size=64, n_ff=32),
        **ONE_IN_FOUR,
        values={**QWEN, **SECTIONS, **QWEN_MOE},
    ),
    Family(
        "qwen3next",
        qwen3next,
        Shape("qwen3next", n_layer=12, n_embd=64, n_head=2, head_size=64, n_ff=32),
        **ONE_IN_FOUR,
        values={**QWEN, **QWEN_MOE},
    ),
    Family(
        "falcon-h1",
        falcon_h1,
        Shape("falcon-h1", n_layer=6, n_embd=64, n_ff=64),
        grows=tuple(range(6)),
        recurrent=tuple(range(6)),
        values=MAMBA2.values(),
    ),
    Family(
        "granite-hybrid",
        granite_hybrid,
        Shape("granitehybrid", n_layer=8, n_embd=64, n_ff=64),
        **ALTERNATE,
        n_head_kv=(0, 2) * 4,
        values={
            **MAMBA2.values(),
            "embedding_scale": 2.0,
            "residual_scale": 0.8,
            "logit_scale": 1.5,
            "attention.scale": 0.25,
        },
    ),
    Family(
        "nemotron-h",
        nemotron_h,
        Shape("nemotron_h", n_layer=12, n_embd=64, n_ff=96),
        grows=tuple(range(1, 12, 3)),
        recurrent=tuple(range(0, 12, 3)),
        cacheless=every(3, 12),
        n_head_kv=(0, 2, 0) * 4,
        n_ff=(0, 0, 96) * 4,
        values={**MAMBA2.values(), "attention.layer_norm_epsilon": 1e-5},
    ),
    Family(
        "jamba",
        jamba,
        Shape("jamba", n_layer=8, n_ff=32),
        **ALTERNATE,
        n_head_kv=(0, 2) * 4,
        values=MAMBA.values(),
    ),
    Family("lfm2", lfm2, Shape("lfm2", n_layer=8, n_ff=64), **ALTERNATE, n_head_kv=(0, 2) * 4, values=LFM2),
    Family(
        "lfm2-window",
        lfm2,
        Shape("lfm2", n_layer=8, n_ff=64),
        grows=(),
        window=every(2, 8),
        recurrent=others(every(2, 8), 8),
        coded=False,
        n_head_kv=(0, 2) * 4,
        values={**LFM2, "attention.sliding_window": 64},
    ),
    Family(
        "mamba",
        mamba_only,
        Shape("mamba", n_layer=4, n_head=0, n_head_kv=0, head_size=0, n_ff=0),
        grows=(),
        recurrent=tuple(range(4)),
        coded=False,
        values=MAMBA.values(),
    ),
)

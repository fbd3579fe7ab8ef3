"""Families without windows and recurrent layers, which turn K in different ways, and one with latent attention."""

from __future__ import annotations

import numpy as np

from support.family_table import Family
from support.family_weights import N_EXPERT, Weights
from support.tiny_models import Shape


def plain(weights: Weights, **attention: object) -> None:
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm")
        weights.attention(layer, **attention)  # type: ignore[arg-type]
        weights.feed_forward(layer)


def mistral(weights: Weights) -> None:
    plain(weights)


def qwen2vl(weights: Weights) -> None:
    plain(weights, bias=True)


def qwen3vl(weights: Weights) -> None:
    plain(weights, qk_norm=1.5)


def mixtral(weights: Weights) -> None:
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm")
        weights.attention(layer)
        weights.experts(layer)


def phi3(weights: Weights) -> None:
    weights.ends()
    rope_factors(weights, weights.shape.head_size)
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm")
        weights.attention(layer, fused=True)
        weights.feed_forward(layer, parts="up", doubled=True)


def phimoe(weights: Weights) -> None:
    weights.ends(bias=True, output_bias=True)
    rope_factors(weights, weights.shape.head_size)
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm", bias=True)
        weights.attention(layer, bias=True, out_bias=True)
        weights.experts(layer)


def rope_factors(weights: Weights, n_rot: int) -> None:
    """Factors of contexts that are longer and of those that are not longer than the original one."""
    for name, most in (("long", 4.0), ("short", 1.2)):
        weights.tensors[f"rope_factors_{name}.weight"] = np.linspace(1, most, n_rot // 2, dtype=np.float32)


def chatglm(weights: Weights) -> None:
    weights.ends()
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm")
        weights.attention(layer, fused=True, bias=True)
        weights.feed_forward(layer, parts="up", doubled=True)


def stablelm(weights: Weights) -> None:
    weights.ends(bias=True)
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm", bias=True)
        weights.attention(layer)
        weights.feed_forward(layer)


def gptneox(weights: Weights) -> None:
    weights.ends(bias=True)
    for layer in range(weights.shape.n_layer):
        weights.norms(layer, "attn_norm", "ffn_norm", bias=True)
        weights.attention(layer, fused=True, bias=True, out_bias=True)
        weights.feed_forward(layer, parts="up", bias=True)


def deepseek2(weights: Weights) -> None:
    """Multi-head latent attention: the cache has one vector for each token, from which K and V of all heads come."""
    shape = weights.shape
    weights.ends()
    for layer in range(shape.n_layer):
        block = f"blk.{layer}"
        weights.norms(layer, "attn_norm", "ffn_norm")
        weights.matrix(f"{block}.attn_q_a", RANK, shape.n_embd)
        weights.norm(f"{block}.attn_q_a_norm", RANK)
        weights.matrix(f"{block}.attn_q_b", shape.n_head * (32 + N_ROT), RANK, 1.5)
        weights.matrix(f"{block}.attn_kv_a_mqa", RANK + N_ROT, shape.n_embd)
        weights.norm(f"{block}.attn_kv_a_norm", RANK)
        for name, n_out, n_in in (("k_b", RANK, 32), ("v_b", 32, RANK)):
            heads = [weights.draw.matrix(n_out, n_in) for _ in range(shape.n_head)]
            weights.tensors[f"{block}.attn_{name}.weight"] = np.stack(heads)
        weights.matrix(f"{block}.attn_output", shape.n_embd, shape.n_head * 32)
        if layer:
            weights.experts(layer)
            weights.shared_expert(layer, gated=False)
        else:
            weights.feed_forward(layer)


RANK, N_ROT = 32, 32  # of latent attention
ALL = tuple(range(6))
LONG: dict[str, object] = {
    "rope.dimension_count": 32,
    "rope.scaling.original_context_length": 128,
    "rope.scaling.attn_factor": 1.1,
}

FAMILIES = (
    Family(
        "mistral",
        mistral,
        Shape("llama", n_layer=6, n_embd=64, head_size=64, n_ff=96),
        grows=ALL,
        values={"rope.dimension_count": 64, "rope.freq_base": 1e6},
    ),
    Family(
        "mixtral",
        mixtral,
        Shape("llama", n_layer=6, n_embd=64, head_size=64, n_ff=32),
        grows=ALL,
        values={
            "rope.dimension_count": 64,
            "rope.freq_base": 1e6,
            "expert_count": N_EXPERT,
            "expert_used_count": 2,
        },
    ),
    Family(
        "qwen2vl",
        qwen2vl,
        Shape("qwen2vl", n_ff=96),
        grows=ALL,
        values={"rope.freq_base": 1e6, "rope.dimension_sections": [4, 6, 6, 0]},
    ),
    Family(
        "qwen3vl",
        qwen3vl,
        Shape("qwen3vl", n_embd=64, head_size=64, n_ff=96),
        grows=ALL,
        values={"rope.freq_base": 5e6, "rope.dimension_sections": [12, 10, 10, 0]},
    ),
    # the tests' contexts are longer than the original one, so that the long factors are in use
    Family("phi3", phi3, Shape("phi3", n_ff=96), grows=ALL, values=LONG),
    Family(
        "phimoe",
        phimoe,
        Shape("phimoe", n_ff=32),
        grows=ALL,
        values={
            **LONG,
            "attention.layer_norm_epsilon": 1e-5,
            "expert_count": N_EXPERT,
            "expert_used_count": 2,
        },
    ),
    # the first part of a head is turned: neighbours in chatglm, halves in stablelm and gptneox
    Family("chatglm", chatglm, Shape("chatglm", n_ff=96), grows=ALL, values={"rope.dimension_count": 16}),
    Family(
        "stablelm",
        stablelm,
        Shape("stablelm", n_head=2, head_size=64, n_ff=96),
        grows=ALL,
        values={"rope.dimension_count": 16, "attention.layer_norm_epsilon": 1e-5},
    ),
    Family(
        "gptneox",
        gptneox,
        Shape("gptneox", n_head=2, head_size=64, n_ff=128),
        grows=ALL,
        values={
            "rope.dimension_count": 16,
            "attention.layer_norm_epsilon": 1e-5,
            "use_parallel_residual": True,
        },
    ),
    Family(
        "deepseek2",
        deepseek2,
        Shape("deepseek2", n_embd=64, n_head_kv=1, head_size=RANK + N_ROT, value_size=RANK, n_ff=32),
        grows=ALL,
        coded=False,
        values={
            "attention.q_lora_rank": RANK,
            "attention.kv_lora_rank": RANK,
            "attention.key_length_mla": 32 + N_ROT,
            "attention.value_length_mla": 32,
            "rope.dimension_count": N_ROT,
            "leading_dense_block_count": 1,
            "expert_count": N_EXPERT,
            "expert_used_count": 2,
            "expert_shared_count": 1,
            "expert_feed_forward_length": 32,
        },
    ),
)

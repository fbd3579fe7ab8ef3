"""Models with random weights whose caches have the true shapes of models that people run.

Layers, KV heads, windows, sinks and RoPE are as in the models. What the KV cache does not depend on is as narrow as can
be: embeddings, query heads, feed-forward parts, experts and recurrent states. Tokens have all of the few experts, so
that no rounding changes which.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from support.family_hybrid import DELTA_NET, QWEN, QWEN_MOE, qwen35, qwen35moe
from support.family_table import Family, every, others
from support.family_weights import N_EXPERT
from support.family_window import GEMMA4, alternate, gemma4, gpt_oss
from support.plans import Groups
from support.tiny_models import Shape


@dataclass(frozen=True)
class TrueShape:
    """A model, with the sizes of its cache in f16. Those of `family.shape` are of the layers that grow."""

    family: Family
    n_rot: int  # numbers of a head of K that RoPE turns
    f16_bytes: int  # of a token in all layers that grow
    window: int = 0  # tokens
    window_bytes: int = 0  # of a token in all layers with a window
    state_bytes: int = 0  # of all recurrent layers; not the model's own

    def __str__(self) -> str:
        return self.family.name

    @property
    def twos(self) -> Groups:
        """All layers that grow, in twos."""
        grows = self.family.grows
        return tuple(zip(grows[::2], grows[1::2], strict=True))

    def kinds(self, growing: str) -> list[str]:
        """What each layer keeps, where those that grow are called so."""
        kinds = dict.fromkeys(self.family.grows, growing)
        kinds |= dict.fromkeys(self.family.window, "window")
        kinds |= dict.fromkeys(self.family.recurrent, "state")
        return [kinds[layer] for layer in range(self.family.shape.n_layer)]


GEMMA4_31B = Family(
    "gemma-4-31b",
    partial(gemma4, step=6, window_size=256),
    Shape("gemma4", n_layer=60, n_embd=24, n_head=16, n_head_kv=4, head_size=512, n_ff=32),
    **alternate(6, 60),
    n_head_kv=(16, 16, 16, 16, 16, 4) * 10,
    values={
        **GEMMA4,
        "attention.sliding_window": 1024,
        "attention.sliding_window_pattern": [True, True, True, True, True, False] * 10,
        "attention.key_length_swa": 256,
        "attention.value_length_swa": 256,
        "rope.dimension_count": 512,
        "rope.dimension_count_swa": 256,
    },
    half=True,
)
GPT_OSS_20B = Family(
    "gpt-oss-20b",
    gpt_oss,
    Shape("gpt-oss", n_layer=24, n_embd=64, n_head=16, n_head_kv=8, head_size=64, n_ff=32),
    **alternate(2, 24),
    values={
        "attention.sliding_window": 128,
        "expert_count": N_EXPERT,
        "expert_used_count": N_EXPERT,
        "expert_feed_forward_length": 32,
        "rope.freq_base": 150000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
    },
    half=True,
)
QWEN36: dict[str, object] = {
    **QWEN,
    "rope.dimension_count": 64,  # of a head of 256
    "rope.dimension_sections": [11, 11, 10, 0],
}
QWEN36_27B = Family(
    "qwen3.6-27b",
    qwen35,
    Shape("qwen35", n_layer=64, n_embd=64, n_head=8, n_head_kv=4, head_size=256, n_ff=32),
    grows=every(4, 64),
    recurrent=others(every(4, 64), 64),
    values=QWEN36,
    half=True,
)
QWEN36_35B_A3B = Family(
    "qwen3.6-35b-a3b",
    qwen35moe,
    Shape("qwen35moe", n_layer=40, n_embd=64, n_head=4, n_head_kv=2, head_size=256, n_ff=32),
    grows=every(4, 40),
    recurrent=others(every(4, 40), 40),
    values={**QWEN36, **QWEN_MOE, "expert_used_count": N_EXPERT},
    half=True,
)

KIB = 1024
TRUE_SHAPES = (
    TrueShape(GEMMA4_31B, 512, 80 * KIB, window=1024, window_bytes=800 * KIB),
    TrueShape(GPT_OSS_20B, 64, 24 * KIB, window=128, window_bytes=24 * KIB),
    TrueShape(QWEN36_27B, 64, 64 * KIB, state_bytes=48 * DELTA_NET.state_bytes),
    TrueShape(QWEN36_35B_A3B, 64, 20 * KIB, state_bytes=30 * DELTA_NET.state_bytes),
)

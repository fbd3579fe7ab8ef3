"""A float32 forward pass of llama and qwen2 models, in which past tokens are seen only through a simulated cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .simulated_cache import SimulatedCache
from .weights import Floats, Weights


def read_text(
    weights: Weights, tokens: Sequence[int], block: int, cache: SimulatedCache, scored_from: int
) -> Iterator[tuple[int, Floats]]:
    """Reads tokens, `block` at a time, and yields the logits after those from index `scored_from` on.

    The tokens of a block see each other exactly and all earlier ones as the cache restores them. Yields the index of a
    token, and the logits [n, n_vocab] after it and the n - 1 tokens that follow it.
    """
    for start in range(0, len(tokens), block):
        hidden = _block(weights, tokens[start : start + block], start, cache)
        cache.end_block()
        first = max(start, scored_from)
        if first < start + len(hidden):
            yield first, hidden[first - start :] @ weights.output.T


def _block(weights: Weights, tokens: Sequence[int], position: int, cache: SimulatedCache) -> Floats:
    """The normalized output of the last layer, [n, n_embd], for tokens from `position` on."""
    hidden = weights["token_embd.weight"][np.asarray(tokens)]
    positions = position + np.arange(len(tokens))
    for number, sizes in enumerate(weights.shape.layers):
        layer = weights.layer(number)
        x = rms_norm(hidden, layer["attn_norm.weight"], weights.eps)
        q = weights.rope.turn(_heads(_linear(layer, "attn_q", x), sizes.head_size_k), positions)
        k = weights.rope.turn(_heads(_linear(layer, "attn_k", x), sizes.head_size_k), positions)
        v = _heads(_linear(layer, "attn_v", x), sizes.head_size_v)
        past_k, past_v = cache.read(number)
        cache.add(number, q, k, v)
        attended = attention(q, np.concatenate([past_k, k]), np.concatenate([past_v, v]))
        hidden = hidden + _linear(layer, "attn_output", attended.reshape(len(x), -1))
        x = rms_norm(hidden, layer["ffn_norm.weight"], weights.eps)
        gate, up = _linear(layer, "ffn_gate", x), _linear(layer, "ffn_up", x)
        hidden = hidden + _linear(layer, "ffn_down", silu(gate) * up)
    return rms_norm(hidden, weights["output_norm.weight"], weights.eps)


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x divided by the root of its mean square along the last axis, times the weight (Zhang and Sennrich 2019)."""
    return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + np.float32(eps)) * weight)


def silu(x: Floats) -> Floats:
    """x times its logistic function; e^-x is kept within the range of float32."""
    return np.asarray(x / (1 + np.exp(-np.maximum(x, -80))))


def attention(q: Floats, k: Floats, v: Floats) -> Floats:
    """Causal attention with grouped queries, [n, n_head, d_v].

    q [n, n_head, d_k] are the queries of the last n tokens, k [m, n_head_kv, d_k] and v [m, n_head_kv, d_v] of all m.
    """
    (n, n_head, d_k), (m, n_head_kv, d_v) = q.shape, v.shape
    queries = q.reshape(n, n_head_kv, -1, d_k).transpose(1, 2, 0, 3).reshape(n_head_kv, -1, d_k)
    scores = queries @ k.transpose(1, 2, 0) / np.float32(np.sqrt(d_k))
    scores = scores.reshape(n_head_kv, -1, n, m)
    scores[..., np.arange(m) > m - n + np.arange(n)[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    attended = weights.reshape(n_head_kv, -1, m) @ v.transpose(1, 0, 2)
    return np.asarray(attended.reshape(n_head_kv, -1, n, d_v).transpose(2, 0, 1, 3).reshape(n, n_head, d_v))


def _linear(layer: dict[str, Floats], name: str, x: Floats) -> Floats:
    result = x @ layer[f"{name}.weight"].T
    return np.asarray(result + layer[f"{name}.bias"] if f"{name}.bias" in layer else result)


def _heads(x: Floats, size: int) -> Floats:
    return x.reshape(len(x), -1, size)

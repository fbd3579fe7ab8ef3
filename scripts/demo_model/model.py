"""The demo models' network: a small Llama (RMSNorm, SwiGLU, RoPE, grouped or full KV heads).

Shapes: B sequences of T tokens, D = n_embd, H query heads, G key/value heads, d = head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recipes import ModelConfig


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis, computed in float32; returns x's dtype."""
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return (h * weight).to(x.dtype)


def rope_tables(n_ctx: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation angles, each [n_ctx, head_dim / 2], float32."""
    freq = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(n_ctx, dtype=torch.float64)[:, None] * freq[None, :]
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, heads, T, d] by position, pairing element i with i + d/2 (export re-orders the rows)."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class Block(nn.Module):
    """One transformer layer: attention and SwiGLU, each behind an RMSNorm and added to the residual."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        q, kv = cfg.n_head * cfg.head_dim, cfg.n_head_kv * cfg.head_dim
        self.attn_norm = nn.Parameter(torch.ones(cfg.n_embd))
        self.wq = nn.Linear(cfg.n_embd, q, bias=False)
        self.wk = nn.Linear(cfg.n_embd, kv, bias=False)
        self.wv = nn.Linear(cfg.n_embd, kv, bias=False)
        self.wo = nn.Linear(q, cfg.n_embd, bias=False)
        self.ffn_norm = nn.Parameter(torch.ones(cfg.n_embd))
        self.gate = nn.Linear(cfg.n_embd, cfg.n_ff, bias=False)
        self.up = nn.Linear(cfg.n_embd, cfg.n_ff, bias=False)
        self.down = nn.Linear(cfg.n_ff, cfg.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, T, D] -> [B, T, D]; cos and sin are [B or 1, 1, T, d/2]; mask as in DemoModel."""
        c = self.cfg
        b, t, _ = x.shape
        h = rms_norm(x, self.attn_norm, c.rms_eps)
        q = rotate(self.wq(h).view(b, t, c.n_head, c.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.wk(h).view(b, t, c.n_head_kv, c.head_dim).transpose(1, 2), cos, sin)
        v = self.wv(h).view(b, t, c.n_head_kv, c.head_dim).transpose(1, 2)
        group = c.n_head // c.n_head_kv
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + self.wo(a.transpose(1, 2).reshape(b, t, c.n_head * c.head_dim))
        h = rms_norm(x, self.ffn_norm, c.rms_eps)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class DemoModel(nn.Module):
    """The whole network, from token ids to logits."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(cfg.n_vocab, cfg.n_embd)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.out_norm = nn.Parameter(torch.ones(cfg.n_embd))
        self.output = nn.Linear(cfg.n_embd, cfg.n_vocab, bias=False)
        cos, sin = rope_tables(cfg.n_ctx, cfg.head_dim, cfg.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def reset(self, embed_std: float, output_copies: bool) -> None:
        """Normal weights of a size that suits the width, the layers' output matrices smaller by the number of layers.

        The latter as in GPT-2 (Radford et al. 2019, section 2.3).
        The embedding and the output matrix are as `Schedule` says.
        """
        nn.init.normal_(self.embed.weight, std=embed_std)
        nn.init.normal_(self.output.weight, std=0.02)
        if output_copies:
            with torch.no_grad():
                self.output.weight.copy_(self.embed.weight * (0.02 / embed_std))
        deep = (2 * self.cfg.n_layer) ** -0.5
        for block in self.blocks:
            for name, p in block.named_parameters():
                if p.ndim == 2:
                    scale = deep if name.startswith(("wo", "down")) else 1.0
                    nn.init.normal_(p, std=0.5 * scale * p.shape[1] ** -0.5)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """tokens [B, T] int64 -> logits [B, T, n_vocab].

        positions [B, T] int64 are 0, 1, ... if not given; mask [T, T] is true where a row may see a column, and
        all that stands before if not given.
        """
        x = self.embed(tokens)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        x = rms_norm(x, self.out_norm, self.cfg.rms_eps)
        return self.output(x)

"""Looking back, set rather than found: attention heads that find an earlier occurrence and copy what followed it.

Such induction heads (Olsson et al. 2022, arXiv 2209.11895) appear by themselves only after many more tokens than a
CPU trains in an hour. As in mimetic initialisation (Trockman and Kolter 2023, arXiv 2305.09828) their weights are
given their shape at one step of the training, and are then trained on like all others:

- in layer 0, two heads attend to the token before and to the one before that, by position alone, and write what
  those tokens are into two subspaces of the residual;
- in layers 2 and 4, heads compare (this token, the one before) with (the one before, the one before that) of every
  earlier place, and copy the token found there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import DemoModel

_WIDTH = 48  # dimensions of each subspace that holds a token's identity
_CONSTANT = 12.0  # length of the part that all token embeddings share; positional heads read only that


def _basis(n: int, generator: torch.Generator) -> Tensor:
    """A random orthonormal basis, columns of [n, n]."""
    return torch.linalg.qr(torch.randn(n, n, generator=generator))[0]


def _offset_pair(head_dim: int, theta: float, offset: int) -> tuple[Tensor, Tensor]:
    """Query and key, [d] each, whose product after RoPE is greatest `offset` tokens back, whatever the tokens.

    The twelve fastest pairs tell neighbours apart. Their sum is large all around; the slowest pairs, which hardly
    turn within the context, are taken away from it, or else a token's length would count more than its place.
    """
    half = head_dim // 2
    angle = offset * theta ** (-torch.arange(half, dtype=torch.float64) / half)
    index = torch.arange(half)
    weight = (index < 12).double() - 2.5 * (index >= half - 4).double()
    query = torch.cat((angle.cos() * weight, -angle.sin() * weight)).float()
    return query, torch.cat((weight != 0, torch.zeros(half))).float()


@torch.no_grad()
def set_lookback(model: DemoModel, seed: int) -> None:
    """Give the heads their weights; everything else keeps what it has learned."""
    cfg = model.cfg
    d = cfg.head_dim
    generator = torch.Generator().manual_seed(seed)
    basis = _basis(cfg.n_embd, generator)
    common = basis[:, 0]
    before = basis[:, 1 : 1 + _WIDTH]
    before2 = basis[:, 1 + _WIDTH : 1 + 2 * _WIDTH]
    content = basis[:, 1 + 2 * _WIDTH :]
    first, second = content[:, :_WIDTH], content[:, _WIDTH:]

    # Room in the embedding for what the heads write, and the part that all tokens share.
    e = model.embed.weight
    for subspace in (before, before2):
        e -= 0.6 * (e @ subspace) @ subspace.T
    e -= torch.outer(e @ common - _CONSTANT, common)
    model.output.weight += 0.02 * (e @ content) @ content.T

    block = model.blocks[0]
    query, key, value = block.wq.weight, block.wk.weight, block.wv.weight
    value[:d] = 0
    value[:_WIDTH] = first.T
    for head, (offset, target) in enumerate(((1, before), (2, before2))):
        ask, told = _offset_pair(d, cfg.rope_theta, offset)
        key[:d] = torch.outer(told, common)
        query[head * d : (head + 1) * d] = torch.outer(ask, common)
        block.wo.weight[:, head * d : (head + 1) * d] = 0
        block.wo.weight[:, head * d : head * d + _WIDTH] = 1.5 * target

    for layer, slow in ((2, 16), (4, 20)):
        block = model.blocks[layer]
        query, key, value, out = block.wq.weight, block.wk.weight, block.wv.weight, block.wo.weight
        out.zero_()
        for group, part in enumerate((first, second)):
            head = group * cfg.n_head // cfg.n_head_kv
            q, k, v = (w[i * d : (i + 1) * d] for w, i in ((query, head), (key, group), (value, group)))
            q.zero_(), k.zero_(), v.zero_()
            # Only the slow pairs of RoPE compare contents at a distance: the even ones hold this token against
            # the one before there, the odd ones the token before against the second before.
            for parity, (mine, theirs) in enumerate(((first, before), (before, before2))):
                pairs = torch.arange(slow + (slow + parity) % 2, d // 2, 2)
                rows = torch.cat((pairs, pairs + d // 2))
                mixed = _basis(_WIDTH, generator)[: len(rows)]
                q[rows] = 2.2 * mixed @ mine.T
                k[rows] = 2.2 * mixed @ theirs.T
            v[: part.shape[1]] = part.T
            out[:, head * d : head * d + part.shape[1]] = 1.5 * part

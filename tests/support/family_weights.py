"""Random weights of the layers that model families are made of, under the names that llama.cpp gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from support.tiny_models import N_VOCAB, Array, Draw, Shape

N_EXPERT = 4  # of every model with experts
BIAS = np.float32(0.2)  # the size of biases, which are the same for all tokens


@dataclass(frozen=True)
class Recurrence:
    """The sizes of a recurrent layer: `ssm.*` in the file."""

    d_inner: int
    d_state: int
    n_head: int  # for Mamba 1, the rank of the time step
    n_group: int = 1
    d_conv: int = 4

    @property
    def state_bytes(self) -> int:
        """Of one layer's state of a delta net or of Mamba 2, in F32: the convolution's last inputs, and the heads'."""
        n_conv = self.d_inner + 2 * self.n_group * self.d_state
        return 4 * ((self.d_conv - 1) * n_conv + self.d_inner * self.d_state)

    def values(self) -> dict[str, object]:
        return {
            "ssm.conv_kernel": self.d_conv,
            "ssm.inner_size": self.d_inner,
            "ssm.state_size": self.d_state,
            "ssm.time_step_rank": self.n_head,
            "ssm.group_count": self.n_group,
        }


class Weights:
    """The weights of one model, drawn part by part. As in the files, the last dimension of a matrix is its input's."""

    def __init__(
        self, shape: Shape, seed: int, n_head_kv: Sequence[int] = (), n_ff: Sequence[int] = ()
    ) -> None:
        self.shape, self.draw = shape, Draw(seed)
        self.n_head_kv = n_head_kv or (shape.n_head_kv,) * shape.n_layer
        self.n_ff = n_ff or (shape.n_ff,) * shape.n_layer
        self.tensors: dict[str, Array] = {}

    def matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0, bias: bool = False) -> None:
        self.tensors[f"{name}.weight"] = self.draw.matrix(n_out, n_in, gain)
        if bias:
            self.tensors[f"{name}.bias"] = self.draw.normal(n_out) * BIAS

    def norm(self, name: str, size: int = 0, gain: float = 1.0, bias: bool = False) -> None:
        """A norm of the residual stream, or of `size` numbers."""
        size = size or self.shape.n_embd
        self.tensors[f"{name}.weight"] = self.draw.norm(size, gain)
        if bias:
            self.tensors[f"{name}.bias"] = self.draw.normal(size) * BIAS

    def norms(self, layer: int, *names: str, bias: bool = False) -> None:
        for name in names:
            self.norm(f"blk.{layer}.{name}", bias=bias)

    def ends(
        self,
        tied: bool = False,
        embedding: float = 1.0,
        gain: float = 1.0,
        bias: bool = False,
        output_bias: bool = False,
        norm: str = "output_norm",
    ) -> None:
        """Embeddings of size `embedding`, the last norm, and the output matrix unless that is the embeddings."""
        n_embd = self.shape.n_embd
        self.tensors["token_embd.weight"] = self.draw.normal(N_VOCAB, n_embd) * np.float32(embedding)
        self.norm(norm, gain=gain, bias=bias)
        if not tied:
            self.matrix("output", N_VOCAB, n_embd, 3.0, bias=output_bias)

    def attention(
        self,
        layer: int,
        *,
        n_head_kv: int = 0,
        head_size: int = 0,
        parts: str = "qkv",
        fused: bool = False,
        gated: bool = False,
        qk_norm: float = 0.0,
        bias: bool = False,
        out_bias: bool = False,
    ) -> None:
        """Queries, keys and values, and the output matrix.

        `parts` are the matrices that the layer has; `fused` makes one matrix of them. With `gated`, the matrix of the
        queries also computes a gate. `qk_norm` is the size of normalised queries, of which a larger one makes attention
        sharper; 0 means that they are not normalised.
        """
        shape, block = self.shape, f"blk.{layer}"
        size = head_size or shape.head_size
        n_kv = (n_head_kv or self.n_head_kv[layer]) * size
        n_q = shape.n_head * size * (2 if gated else 1)
        if fused:
            self.matrix(f"{block}.attn_qkv", n_q + 2 * n_kv, shape.n_embd, 1.2, bias=bias)
        else:
            for part in parts:
                # large queries, so that attention prefers some tokens
                n_out, gain = (n_q, 1.5) if part == "q" else (n_kv, 1.0)
                self.matrix(f"{block}.attn_{part}", n_out, shape.n_embd, gain, bias=bias)
        if qk_norm:
            self.norm(f"{block}.attn_q_norm", size, qk_norm)
            if "k" in parts:
                self.norm(f"{block}.attn_k_norm", size)
        self.matrix(f"{block}.attn_output", shape.n_embd, shape.n_head * size, bias=out_bias)

    def feed_forward(
        self,
        layer: int,
        *,
        parts: str = "gate up",
        doubled: bool = False,
        bias: bool = False,
        suffix: str = "",
    ) -> None:
        """The feed-forward part; `doubled` means that `up` computes the gate too."""
        n_ff, n_embd, block = self.n_ff[layer], self.shape.n_embd, f"blk.{layer}"
        for part in parts.split():
            self.matrix(f"{block}.ffn_{part}{suffix}", n_ff * (2 if doubled else 1), n_embd, bias=bias)
        self.matrix(f"{block}.ffn_down{suffix}", n_embd, n_ff, bias=bias)

    def experts(self, layer: int, n_ff: int = 0, bias: bool = False) -> None:
        """The router and the experts' matrices."""
        n_embd, block = self.shape.n_embd, f"blk.{layer}"
        n_ff = n_ff or self.n_ff[layer]
        self.matrix(f"{block}.ffn_gate_inp", N_EXPERT, n_embd, 2.0, bias=bias)
        for part, n_out, n_in in (("gate", n_ff, n_embd), ("up", n_ff, n_embd), ("down", n_embd, n_ff)):
            name = f"{block}.ffn_{part}_exps"
            self.tensors[f"{name}.weight"] = np.stack(
                [self.draw.matrix(n_out, n_in) for _ in range(N_EXPERT)]
            )
            if bias:
                self.tensors[f"{name}.bias"] = self.draw.normal(N_EXPERT, n_out) * BIAS

    def shared_expert(self, layer: int, gated: bool) -> None:
        """The expert that every token has, with a gate of its own where `gated`."""
        self.feed_forward(layer, suffix="_shexp")
        if gated:
            name = f"blk.{layer}.ffn_gate_inp_shexp.weight"
            self.tensors[name] = self.draw.matrix(1, self.shape.n_embd)[0]

"""How the next token of an answer is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from ..native.binding import llama_h
from ..runtime.llama import Llama

PENALTY_TOKENS = 64  # how far back the repeat penalty looks


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest one."""

    temp: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None


class Sampler:
    """llama.cpp's sampler chain. It lives as long as the conversation, because the repeat penalty looks back."""

    def __init__(self, sampling: Sampling, n_vocab: int) -> None:
        chain = llama_h.llama_sampler_chain_init(llama_h.llama_sampler_chain_default_params())
        seed = llama_h.LLAMA_DEFAULT_SEED if sampling.seed is None else sampling.seed & 0xFFFFFFFF
        penalty = sampling.repeat_penalty
        links = [llama_h.llama_sampler_init_penalties(n_vocab, PENALTY_TOKENS, penalty, 0.0, 0.0)]
        if sampling.temp <= 0:
            links.append(llama_h.llama_sampler_init_greedy())
        else:
            links += [
                llama_h.llama_sampler_init_top_k(sampling.top_k),
                llama_h.llama_sampler_init_top_p(sampling.top_p, 1),
                llama_h.llama_sampler_init_min_p(sampling.min_p, 1),
                llama_h.llama_sampler_init_temp(sampling.temp),
                llama_h.llama_sampler_init_dist(seed),
            ]
        for link in links:
            llama_h.llama_sampler_chain_add(chain, link)
        self.chain = chain

    def sample(self, llm: Llama) -> int:
        return int(llama_h.llama_sampler_sample(self.chain, llm.ctx, -1))

    def reset(self) -> None:
        llama_h.llama_sampler_reset(self.chain)

    def __del__(self) -> None:
        if getattr(self, "chain", None) is not None:
            llama_h.llama_sampler_free(self.chain)
            self.chain = None

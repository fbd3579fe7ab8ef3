"""Caches of models of families: without loss by keeping all tokens, or nearly so by exact codes.

Upstream's own f16 cache is what they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from oracle.code import UNIT, Codec, Layout, Part, random_codec
from oracle.model import Config
from support.contexts import Context, Model, llama_cpp, nmse
from support.family_models import FAMILIES, Family
from support.plans import Groups, write_plan
from support.scenarios import Memory, Result

# K is coded relative to the last multiple of this position
ROPE_BLOCK = 16

# f16 sums, and roundings of f16 rows
KEPT_BOUND = 5e-5
# magnitudes of 8 bits are wrong by up to 1.4 %
CODED_BOUND = 5e-3
# where an expert is chosen otherwise, in squared errors
WITH_EXPERTS = 5e-2


class LoadedFamily:
    """A model of a family, its file and the loaded handle. Its `tiny.shape` is that of the layers that grow."""

    def __init__(self, family: str | Family, path: Path, seed: int = 0) -> None:
        self.family: Family = FAMILIES[family] if isinstance(family, str) else family
        self.path = self.family.write(path, seed)
        self.model = Model(self.path)
        heads = {self.family.n_head_kv[layer] for layer in self.family.grows if self.family.n_head_kv}
        shape = replace(self.family.shape, n_head_kv=heads.pop()) if heads else self.family.shape
        self.tiny = SimpleNamespace(shape=shape)

    def groups(self, most: int = 3) -> Groups:
        """All layers that grow but the last, in groups of at most `most`; the last one stays plain."""
        layers = self.family.grows[:-1]
        return tuple(layers[i : i + most] for i in range(0, len(layers), most))

    def pairs(self) -> Groups:
        """The pairs of neighbours among the layers that grow, from the first on."""
        grows = self.family.grows
        return tuple(zip(grows[::2], grows[1::2], strict=False))

    def keeping_all(self, config: Config) -> Config:
        """`config` with pairs merged and every token retained as it is."""
        return replace(config, groups=self.pairs(), retain=1.0, pool_type="f16")

    def cache(self, kind: str, config: Config, path: Path, window: int = 0) -> tuple[Config, float]:
        """The cache of kind "kept" or "coded", and what it may differ by from upstream's."""
        if kind == "kept":
            return self.keeping_all(config), KEPT_BOUND
        return self.coded(config, path, window=window), CODED_BOUND

    def coded(
        self, config: Config, path: Path, groups: Groups = (), window: int = 0, alike: bool = False
    ) -> Config:
        """`config` with groups in codes of as many coefficients as numbers, of 8 bits each; the plan goes to `path`.

        With `alike`, which saves time where codes are long, the groups have the same number of layers, and one codec
        that differs only in which KV head has which part of it.
        """
        rng, shape = np.random.default_rng(3), self.tiny.shape
        groups = groups or self.groups()
        codecs = []
        for number, group in enumerate(groups):
            if alike and codecs:
                codecs.append(with_other_heads(codecs[0], number))
                continue
            layouts = [Layout((len(group) * shape.head_size // UNIT, 0, 0, 0, 0, 0, 0))] * shape.n_head_kv
            sizes = shape.head_size, shape.head_size
            codecs.append(random_codec(rng, layouts, layouts, *sizes, n_layer=len(group)))
        config = replace(
            config, groups=groups, codecs=tuple(codecs), rope_block=ROPE_BLOCK, window=window, plan=str(path)
        )
        write_plan(self, config)  # type: ignore[arg-type]
        return config


def with_other_heads(codec: Codec, by: int) -> Codec:
    """The codec whose KV heads have changed places."""

    def part(one: Part) -> Part:
        n = len(one.heads)
        return Part(tuple(one.heads[(head - by) % n] for head in range(n)))

    return replace(codec, k=part(codec.k), v=part(codec.v))


def is_shift(scenario: Callable[[Memory, int], Result]) -> bool:
    """Whether a scenario moves positions."""
    return scenario.__name__.startswith(("shift", "divide"))


def assert_agrees(
    loaded: LoadedFamily,
    config: Config,
    scenario: Callable[[Memory, int], Result],
    bound: float,
    swa_full: bool,
) -> None:
    """The scenario gives what it gives with upstream's own f16 cache, in the same splits."""
    plain = replace(config, groups=(), plan="")
    with (
        Context.of(loaded.model, plain, swa_full=swa_full) as a,
        Context.of(loaded.model, config, swa_full=swa_full) as b,
    ):
        assert b.report().active
        assert llama_cpp.llama_memory_can_shift(b.memory) or not is_shift(scenario)
        expected, result = (np.concatenate(scenario(one, 1)) for one in (a, b))
    if loaded.family.chooses_experts:
        # an expert that is chosen otherwise changes a token altogether, and the tokens after it
        assert np.median([nmse(one, other) for one, other in zip(result, expected, strict=True)]) <= bound
        bound = WITH_EXPERTS
    assert nmse(result, expected) <= bound

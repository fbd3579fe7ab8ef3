"""Walks of plain models beside the NumPy oracle: SLERP, averages, codes, and cache types by layer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from campaigns.members import Library, OracleMember
from campaigns.operations import Rules
from campaigns.walks import ON_A_DEVICE, Setup
from oracle.model import Config
from support import tiny_models
from support.bounds import F16_BOUND, MARGIN, MARGIN_ON_A_DEVICE, QUANTIZED_BOUND, TIED_BOUND
from support.contexts import Context
from support.cuda_on_cpu import Devices
from support.loaded import Loaded
from support.plans import ALL_PAIRS, LAYER_TYPES, coded, plain

# Ends of walks are at a twentieth of these: a rounding to another level, of which there are many in a long batch, takes
# an error to that, and a fault far beyond the bound.
BOUND_OF_CODES = TIED_BOUND
BOUND_OF_FEW_BITS = 3 * TIED_BOUND
BOUND_OF_QUANTIZED = 5 * QUANTIZED_BOUND
# By how much bounds are wider on a device where each token has nothing but codes to read. Its kernels are off by 1e-6,
# and with codes alone this can grow to 0.02 within three tokens; on the CPU, which computes these models as the oracle
# does, the same walks are off by 1e-12.
CODES_ALONE_ON_A_DEVICE = 5
# fewer are filled up to as many
N_CELLS = 256
# the arguments of random_model(); models without RoPE have f16 caches only, which a shift leaves as they are
MODELS: dict[str, dict[str, Any]] = {
    "llama, heads of 32": {},
    "llama, heads of 64": {"head_size": 64},
    "qwen2": {"arch": "qwen2"},
    "refact": {"arch": "refact"},
}


class PlainModels:
    """Makes the setups, and loads each model once."""

    def __init__(self, folder: Path, device: Devices | None = None, unsettled: bool = False) -> None:
        self.folder, self.device, self.unsettled = folder, device, unsettled
        self.loaded: dict[str, Loaded] = {}

    def setup(self, seed: int) -> Setup:
        rng = random.Random(f"plain {seed}")
        name = rng.choice(list(MODELS))
        loaded = self.load(name)
        n_seq = rng.choice([1, 2, 3])
        base = Config(
            n_cells=N_CELLS,
            n_ubatch=rng.choice([1, 7, 7, 16, 16, 64, 64]),
            n_seq_max=n_seq,
            unified=n_seq == 1 or rng.random() < 0.5,
            retain=rng.choice([0.0, 0.05, 0.1, 1.0]),
            window=rng.choice([0, 9, 24]),
            pool_type=rng.choice(["f16", "q8_0"]),
        )
        kind = rng.choice(list(KINDS))
        config, bound = KINDS[kind](loaded, base, rng, self.folder / "plan.gguf")
        rules = Rules(
            n_seq,
            base.unified,
            N_CELLS,
            # with codes, upstream turns retained K the other way where positions are divided
            divides=not (config.codecs and (config.retain or config.window)),
            unsettled=self.unsettled,
        )
        settings = ", ".join(
            f"{key}={getattr(config, key)}"
            for key in (
                "retain",
                "window",
                "pool_type",
                "type_k",
                "type_v",
                "n_ubatch",
                "n_seq_max",
                "unified",
            )
        )
        ends_at = bound / 20
        if self.device and bound == F16_BOUND:
            bound, ends_at = ON_A_DEVICE * bound, ON_A_DEVICE * ends_at
        elif self.device and codes_alone(config):
            bound *= CODES_ALONE_ON_A_DEVICE
        library = Library(lambda: Context.of(loaded.model, config))
        reference = OracleMember(loaded.tiny, config, MARGIN_ON_A_DEVICE if self.device else MARGIN)
        return Setup(
            f"{kind}, {name}, {settings}",
            f"{kind} beside the oracle",
            rules,
            library,
            reference,
            bound,
            bound,
            ends_at,
        )

    def load(self, name: str) -> Loaded:
        if name not in self.loaded:
            path = self.folder / f"plain-{len(self.loaded)}.gguf"
            loaded = Loaded(tiny_models.random_model(**MODELS[name]), path)
            self.loaded[name] = self.device.held(loaded) if self.device else loaded
        return self.loaded[name]


Made = tuple[Config, float]


def codes_alone(config: Config) -> bool:
    """Whether a token reads only what was restored from codes, but for itself."""
    return bool(config.codecs) and config.n_ubatch == 1 and not config.window and not config.retain


def without_rope(loaded: Loaded) -> bool:
    return loaded.tiny.shape.rope == "none"


def slerp(loaded: Loaded, base: Config, rng: random.Random, _: Path) -> Made:
    kind = "f16" if without_rope(loaded) else rng.choice(["f16", "q8_0", "q4_0"])
    if without_rope(loaded):
        base = replace(base, pool_type="f16")
    groups = loaded.pairs if rng.random() < 0.5 else ALL_PAIRS
    config = replace(base, groups=groups, type_k=kind, type_v=kind)
    return config, F16_BOUND if kind == base.pool_type == "f16" else BOUND_OF_QUANTIZED


def averages(loaded: Loaded, base: Config, rng: random.Random, path: Path) -> Made:
    config, bound = slerp(loaded, base, rng, path)
    return replace(config, average=True), bound


def codes(loaded: Loaded, base: Config, rng: random.Random, path: Path) -> Made:
    config = coded(loaded, replace(base, groups=ALL_PAIRS), path, rope_block=rng.choice([0, 1, 16, 64]))
    return config, BOUND_OF_CODES


def codes_of_three(loaded: Loaded, base: Config, rng: random.Random, path: Path) -> Made:
    groups = ((0, 1, 2), (3, 4, 5)) if loaded.tiny.shape.head_size == 32 else ((0, 1, 2, 3), (4,))
    return coded(
        loaded, replace(base, groups=groups), path, rope_block=rng.choice([0, 16])
    ), BOUND_OF_FEW_BITS


def codes_beside_plain_layers(loaded: Loaded, base: Config, rng: random.Random, path: Path) -> Made:
    kind = "f16" if without_rope(loaded) else rng.choice(["f16", "q8_0"])
    config = replace(base, groups=((0, 1), (4, 5)), type_k=kind, type_v=rng.choice(["f16", "q8_0", "q4_0"]))
    return coded(loaded, config, path), BOUND_OF_FEW_BITS


def types_by_layer(loaded: Loaded, base: Config, rng: random.Random, path: Path) -> Made:
    layers = () if without_rope(loaded) else LAYER_TYPES
    config = replace(base, retain=0.0, window=0, plain=layers)
    return plain(loaded, config, path), BOUND_OF_QUANTIZED


KINDS: dict[str, Callable[[Loaded, Config, random.Random, Path], Made]] = {
    "slerp": slerp,
    "averages": averages,
    "codes": codes,
    "codes of three or four layers": codes_of_three,
    "codes beside plain layers": codes_beside_plain_layers,
    "types by layer": types_by_layer,
}

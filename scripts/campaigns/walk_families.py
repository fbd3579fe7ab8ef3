"""Walks of model families beside upstream's own f16 cache: sliding windows, recurrent layers, experts, odd RoPE."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from campaigns.members import Library
from campaigns.operations import Rules
from campaigns.walks import ON_A_DEVICE, Setup
from minicache_cpp.native.binding import llama_h
from oracle.model import Config
from support.contexts import Context
from support.cuda_on_cpu import Devices
from support.family_caches import LoadedFamily
from support.family_models import FAMILIES

NAMES = [name for name, family in FAMILIES.items() if family.coded]
# Moves make errors add up: a shift rounds f16 rows again, and only the side whose rows are exact.
KEPT_BOUND, KEPT_AND_MOVED = 5e-5, 1e-4
# magnitudes of 8 bits are wrong by up to 1.4 %, and a long walk has some hundred tokens of them
CODED_BOUND, CODED_AND_MOVED = 5e-3, 2e-2
# layers without RoPE, whose K upstream turns at a shift all the same
PARTLY_WITHOUT_ROPE = ("cohere2", "llama4")
# how much larger errors may be where experts are chosen otherwise
WITH_EXPERTS = 20


class Families:
    """Makes the setups, and loads each model once."""

    def __init__(self, folder: Path, device: Devices | None = None, unsettled: bool = False) -> None:
        self.folder, self.device, self.unsettled = folder, device, unsettled
        # each model on the CPU, and where the library computes
        self.loaded: dict[str, tuple[LoadedFamily, LoadedFamily]] = {}

    def setup(self, seed: int) -> Setup:
        rng = random.Random(f"family {seed}")
        name = NAMES[seed % len(NAMES)]
        loaded, held = self.load(name)
        n_seq = rng.choice([1, 2, 3])
        base = Config(
            n_cells=256,
            n_ubatch=rng.choice([8, 16, 32]),
            n_seq_max=n_seq,
            unified=n_seq == 1 or rng.random() < 0.5,
        )
        kind = rng.choice(["kept", "coded", "coded with a window"])
        if kind == "kept":
            config = loaded.keeping_all(base)
        else:
            window = rng.choice([5, 64]) if kind != "coded" else 0
            config = loaded.coded(base, self.folder / f"{name}.plan.gguf", window=window)
        swa_full = rng.random() < 0.5
        library = Library(lambda: Context.of(held.model, config, swa_full=swa_full))
        reference = Library(
            lambda: Context.of(loaded.model, replace(base, groups=(), plan=""), swa_full=swa_full)
        )
        settings = f"n_ubatch={base.n_ubatch}, n_seq_max={n_seq}, unified={base.unified}, swa_full={swa_full}"
        experts = loaded.family.chooses_experts
        bound, moved = (KEPT_BOUND, KEPT_AND_MOVED) if kind == "kept" else (CODED_BOUND, CODED_AND_MOVED)
        factor = (WITH_EXPERTS if experts else 1) * (ON_A_DEVICE if self.device and kind == "kept" else 1)
        return Setup(
            f"{name}, {kind}, {settings}",
            f"{kind}{', experts,' if experts else ''} beside upstream",
            self.rules(loaded, base, reference),
            library,
            reference,
            bound * factor,
            moved * factor,
            by_quarter=experts,
            keeps_refused=False,
        )

    def rules(self, loaded: LoadedFamily, base: Config, upstream: Library) -> Rules:
        """What upstream can be compared in."""
        can_shift = bool(llama_h.llama_memory_can_shift(upstream.ctx.memory))
        # with YaRN and LongRoPE upstream changes the length of K at every shift, and merged layers do not
        lengthens = any(key.startswith("rope.scaling") for key in loaded.family.values)
        turns = not lengthens and loaded.family.name not in PARTLY_WITHOUT_ROPE
        recurrent = bool(loaded.family.recurrent)
        return Rules(
            base.n_seq_max,
            base.unified,
            base.n_cells,
            shifts=can_shift and turns and not recurrent,
            # where positions are divided, upstream turns K the other way, and codes do not
            divides=False,
            parts=not recurrent,
            unsettled=self.unsettled,
        )

    def load(self, name: str) -> tuple[LoadedFamily, LoadedFamily]:
        if name not in self.loaded:
            loaded = LoadedFamily(name, self.folder / f"{name}.gguf")
            self.loaded[name] = loaded, self.device.held(loaded) if self.device else loaded
        return self.loaded[name]

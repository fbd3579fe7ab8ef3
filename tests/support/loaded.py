"""Tiny models, written and loaded."""

from __future__ import annotations

from pathlib import Path

from support import contexts, tiny_models
from support.tiny_models import TinyModel


class Loaded:
    """A tiny model with its weights, its file and the loaded handle."""

    def __init__(self, tiny: TinyModel, path: Path) -> None:
        self.tiny = tiny
        self.path = tiny.write(path)
        self.model = contexts.Model(path)
        self.pairs = tuple(tiny_models.default_pairs(tiny.shape.n_layer))

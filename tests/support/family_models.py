"""Tiny GGUF models of the architectures that MiniCache meets, each in the shape that matters for the cache.

`FAMILIES[name].write(path)` makes one. What its cache is like stands in the table as plain data: see `Family`.
"""

from __future__ import annotations

from support import family_hybrid, family_rope, family_window
from support.family_table import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (*family_window.FAMILIES, *family_hybrid.FAMILIES, *family_rope.FAMILIES)
}

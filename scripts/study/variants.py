"""The variants of codes that are compared, and how their names are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from minicache_cpp import MiniCacheError

from .quantizers import QUANTIZERS

CHOICES = {
    "widths": ("head", "group"),
    "values": tuple(QUANTIZERS),
    "code": ("head", "heads", "kv"),
    "mean": ("kept", "apart"),
    "pool": ("q8_0", "f16"),
    "scale": ("token", "fixed"),
    "length": ("kept", "unbiased", "least"),
    "weights": ("numbers", "full"),
    "rows": ("even", "later", "seen"),
}


@dataclass(frozen=True)
class Variant:
    """A way to code K and V. The defaults are what plans are today."""

    # f16 bytes of a token over this code's
    ratio: float = 5.0
    # layers that share a code
    layers: int = 2
    # whether each head of a group has widths of its own, or all the same
    widths: str = "head"
    # coefficients that share a width
    unit: int = 16
    values: str = "uniform"
    # whether errors are weighted number by number, or by full matrices
    weights: str = "numbers"
    # what the error of a coefficient that is left out counts, over that of one that is rounded
    omitted: float = 1.0
    # the bytes of a token that a unit which attention reads is worth, in each of the layers that read it
    time: float = 0.0
    # base positions of K are multiples of it; 0: K as it is after RoPE
    block: int = 128
    # what shares a code, beside layers: nothing, all KV heads, or K and V of a head
    code: str = "head"
    # whether the mean of what is coded is a part of it, or is added to what is restored
    mean: str = "kept"
    # bits of a magnitude
    mag: int = 8
    # whether each token multiplies its steps by what suits it best, or all have the same steps
    scale: str = "token"
    # what a magnitude keeps: the length, the part along the vector, or the least error
    length: str = "kept"
    # whether all tokens have the same widths, or those that count most have larger ones: by what they will be read for,
    # which only a study knows, or by what the tokens of the window made of them
    rows: str = "even"
    # the share of tokens that do
    large: float = 0.0625
    # first and latest tokens that are kept exactly, and their cache type
    window: int = 64
    pool: str = "q8_0"

    @classmethod
    def parse(cls, text: str) -> Variant:
        """Reads "unit=8,widths=group"; an empty text, or "today", means the defaults."""
        defaults = asdict(cls())
        values: dict[str, Any] = {}
        for word in text.split(",") if text not in ("", "today") else ():
            name, _, value = word.partition("=")
            if name not in defaults:
                raise MiniCacheError(f"--config {text}: {name!r} is none of {', '.join(defaults)}")
            try:
                values[name] = type(defaults[name])(value)
            except ValueError:
                raise MiniCacheError(f"--config {text}: {name}={value} is not a number") from None
            if name in CHOICES and value not in CHOICES[name]:
                raise MiniCacheError(f"--config {text}: {name} is one of {', '.join(CHOICES[name])}")
        found = cls(**values)
        if not (
            1 <= found.layers <= 4
            and found.ratio > 1
            and found.block >= 0
            and 2 <= found.mag <= 16
            and found.window >= 0
            and 0 < found.large < 1
            and found.omitted > 0
            and found.time >= 0
        ):
            raise MiniCacheError(f"--config {text}: a number is out of range")
        if found.unit not in (1, 2, 4, 8, 16, 32):
            raise MiniCacheError(f"--config {text}: unit is one of 1, 2, 4, 8, 16, 32")
        return found

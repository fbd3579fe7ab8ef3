"""How a KV cache is kept: MiniCache's settings, plain caches, and the SPEC texts that name both."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real

from ..errors import MiniCacheError
from ..modelfile.ggml_types import POOL_TYPES, cache_type
from .plan_file import MAX_WINDOW, read_plan

SPEC_HELP = (
    'a cache type ("f16", "q8_0", "q4_0": a plain cache), "slerp:start=0.5,t=0.6,retain=0.05,type=q4_0" '
    "(also window=64, type_k, type_v, pool, pairs=8-9;10-11, strict; every key is optional; "
    "average:start=0.5,type=q4_0 averages), or the path of a plan, a .gguf file that `minicache calibrate` writes"
)
PLAN_DECIDES = ("start", "pairs", "t", "retain", "type_k", "type_v", "pool_type", "window", "mode")
MODES = ("slerp", "average", "aligned", "code")  # the native library's numbers of them
OWN_MODES = MODES[:2]  # those that need no plan


@dataclass(frozen=True)
class MiniCache:
    """The KV cache of neighbouring layers kept as one (MiniCache, Liu et al. 2024, arXiv 2405.14366).

    For layers a and b of a pair, per token and KV head, with u = x/|x| and Ω = arccos(u_a·u_b):

        e   = sin((1-t)Ω)/sinΩ · u_a + sin(tΩ)/sinΩ · u_b     one direction is stored for both layers
        x̂_a = |x_a|·e,   x̂_b = |x_b|·e                        each layer's magnitude is stored beside it
        δ   = Ω/π                                             the distance; the most distant are retained

    start: the first layer that may be merged: a fraction of the layers in [0, 1), or a layer number (int).
    pairs: explicit pairs (a, b), a < b, in place of `start`; None: (S, S+1), (S+2, S+3), … from the start on.
    t: in [0, 1]; 0 gives layer a's direction, 1 gives layer b's; the paper's is 0.6.
    retain: the fraction of tokens, in [0, 1], that both layers keep unmerged.
    type_k, type_v: cache types of the directions and of the layers that are not merged.
    pool_type: type of the retained tokens and of the window: "f16", "q8_0", or "cache" for the cache types.
    window: the tokens of each stream, the latest, that both layers keep unmerged, 0 to 65536; the paper has 0.
    plan: the path of a plan, which `minicache calibrate` makes for a model: it keeps groups of 1 to 4 neighbouring
        layers as shared codes, and decides all of the above.
    strict: fail, rather than warn, where no pair (or not every explicit pair) can be merged.
    mode: "slerp", or "average" for what the paper compares with: (x_a + x_b)/2 for both layers, no magnitudes.
        A plan's is "code" or "aligned" (SLERP in calibrated bases).

    `groups` tells the layers that share storage, the pairs or the plan's groups; None where `start` decides.
    """

    start: float | int = 0.5
    pairs: Iterable[tuple[int, int]] | None = None
    t: float = 0.6
    retain: float = 0.05
    type_k: str = "f16"
    type_v: str = "f16"
    pool_type: str = "q8_0"
    window: int = 0
    plan: str | os.PathLike[str] | None = None
    strict: bool = False
    mode: str = "slerp"
    groups: tuple[tuple[int, ...], ...] | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.plan is not None:
            self._take_over(self.plan)
        object.__setattr__(self, "start", _start(self.start))
        object.__setattr__(self, "pairs", _pairs(self.pairs))
        if self.groups is None:
            object.__setattr__(self, "groups", self.pairs)
        object.__setattr__(self, "t", _fraction("t", self.t))
        object.__setattr__(self, "retain", _fraction("retain", self.retain))
        cache_type(self.type_k, "type_k")
        cache_type(self.type_v, "type_v")
        if self.pool_type not in POOL_TYPES:
            raise MiniCacheError(
                f"pool_type={self.pool_type!r} is no type of retained tokens; "
                f"choose one of {', '.join(POOL_TYPES)}"
            )
        object.__setattr__(self, "window", _window(self.window))
        if self.plan is None and self.mode not in OWN_MODES:
            raise MiniCacheError(
                f"mode={self.mode!r} is none of {', '.join(OWN_MODES)}; plans have others, which they name"
            )
        if not isinstance(self.strict, bool):
            raise MiniCacheError(f"strict={self.strict!r} is neither True nor False")

    def _take_over(self, path: object) -> None:
        """Set what the plan decides; it may have been said before in the same words."""
        if not isinstance(path, str | os.PathLike):
            raise MiniCacheError(f"plan={path!r} is no path of a plan file")
        plan = read_plan(os.fspath(path))
        decided = {
            "pairs": tuple(group.layers for group in plan.groups if group.n_layer == 2) or None,
            "retain": plan.retain,
            "type_k": plan.type_k,
            "type_v": plan.type_v,
            "pool_type": plan.pool_type,
            "window": plan.window,
            "mode": plan.mode,
            "t": plan.t,
        }
        for one in fields(self):
            if one.name not in PLAN_DECIDES:
                continue
            value = getattr(self, one.name)
            if value not in (one.default, decided.get(one.name, one.default)):
                raise MiniCacheError(
                    f"{one.name}={value!r} is given beside plan={os.fspath(path)!r}, which decides it; "
                    "leave one of them out"
                )
        for name, value in decided.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "plan", os.fspath(path))
        object.__setattr__(self, "groups", tuple(group.layers for group in plan.groups))

    @property
    def retain_block(self) -> int:
        """Consecutive cells that share one retained token, round(1/retain); 0 where none are retained."""
        return retain_block(self.retain)

    def start_layer(self, n_layer: int) -> int:
        """The first layer that may be merged in a model of so many layers."""
        if isinstance(self.start, int):
            return self.start
        return int(as_float32(as_float32(self.start) * n_layer))

    def spec(self) -> str:
        """The SPEC text of these settings; `CacheSpec.parse` gives them back."""
        if self.plan is not None:
            return os.fspath(self.plan)
        where = [f"start={self.start}"]
        if self.pairs is not None:
            where = ["pairs=" + ";".join(f"{a}-{b}" for a, b in self.pairs)]
        types = [f"type={self.type_k}"]
        if self.type_k != self.type_v:
            types = [f"type_k={self.type_k}", f"type_v={self.type_v}"]
        rest = [f"pool={self.pool_type}"] * (self.pool_type != "q8_0") + ["strict=1"] * self.strict
        t = [f"t={self.t}"] * (self.mode == "slerp")
        window = [f"window={self.window}"] * bool(self.window)
        return f"{self.mode}:" + ",".join([*where, *t, f"retain={self.retain}", *window, *types, *rest])

    @classmethod
    def parse(cls, spec: str) -> MiniCache:
        """The settings of a SPEC such as "slerp:start=0.5,t=0.6,type=q4_0"; every key is optional."""
        mode, _, text = spec.strip().partition(":")
        if mode not in OWN_MODES:
            raise MiniCacheError(
                f"{spec!r} is no MiniCache setting; write slerp:start=0.5,t=0.6,retain=0.05,type=q4_0"
            )
        values: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not equals or not value:
                raise MiniCacheError(f"{item!r} in {spec!r} is not of the form key=value")
            if key in values:
                raise MiniCacheError(f"{key!r} is given twice in {spec!r}")
            values[key] = value
        both = values.pop("type", "f16")
        settings: dict[str, object] = {
            "type_k": values.pop("type_k", both),
            "type_v": values.pop("type_v", both),
            "pool_type": values.pop("pool", "q8_0"),
            "mode": mode,
        }
        if mode == "average":
            values.setdefault("retain", "0")  # as in the paper
        for key, value in values.items():
            if key == "start":
                settings[key] = _number(key, value, spec, whole=value.lstrip("+-").isdigit())
            elif key in ("t", "retain"):
                settings[key] = _number(key, value, spec)
            elif key == "window":
                settings[key] = _number(key, value, spec, whole=True)
            elif key == "pairs":
                settings[key] = _parse_pairs(value, spec)
            elif key == "strict":
                settings[key] = _parse_switch(key, value, spec)
            else:
                known = "start, t, retain, window, type, type_k, type_v, pool, pairs, strict"
                raise MiniCacheError(f"{key!r} in {spec!r} is no setting; there are {known}")
        return cls(**settings)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CacheSpec:
    """One way to keep a cache: plain with these types, or as `minicache` says."""

    type_k: str
    type_v: str
    minicache: MiniCache | None = None

    @property
    def name(self) -> str:
        if self.minicache is not None:
            return self.minicache.spec()
        return self.type_k if self.type_k == self.type_v else f"{self.type_k}/{self.type_v}"

    @property
    def cache(self) -> str:
        """The cache type alone, as tables name it."""
        return self.type_k if self.type_k == self.type_v else f"{self.type_k}/{self.type_v}"

    @classmethod
    def of(cls, minicache: MiniCache) -> CacheSpec:
        return cls(minicache.type_k, minicache.type_v, minicache)

    @classmethod
    def parse(cls, spec: str) -> CacheSpec:
        """A SPEC, as the command line takes it: a cache type for a plain cache, slerp:…, or a plan's path."""
        spec = spec.strip()
        if spec.partition(":")[0] in OWN_MODES:
            return cls.of(MiniCache.parse(spec))
        if spec.endswith(".gguf"):
            return cls.of(MiniCache(plan=spec))
        try:
            cache_type(spec, "SPEC")
        except MiniCacheError:
            raise MiniCacheError(f"{spec!r} is no cache setting; give {SPEC_HELP}") from None
        return cls(spec, spec)


def retain_block(retain: float) -> int:
    """The cells of which one is retained where this fraction of them is to be."""
    retain = as_float32(retain)
    return max(1, math.floor(1 / retain + 0.5)) if retain > 0 else 0


def as_float32(value: float) -> float:
    """Rounded as the native library's parameters are."""
    return ctypes.c_float(value).value


def _start(value: object) -> float | int:
    if isinstance(value, Integral) and not isinstance(value, bool):
        if int(value) < 0:
            raise MiniCacheError(f"start={value} is no layer; layers count from 0")
        return int(value)
    if isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1:
        return float(value)
    raise MiniCacheError(
        f"start={value!r} is neither a fraction of the layers, a float in [0, 1), "
        "nor a layer number, an int from 0 up"
    )


def _fraction(name: str, value: object) -> float:
    if isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1:
        return float(value)
    raise MiniCacheError(f"{name}={value!r} is outside its range, [0, 1]")


def _window(value: object) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) <= MAX_WINDOW:
        return int(value)
    raise MiniCacheError(f"window={value!r} is no number of tokens, an int from 0 to {MAX_WINDOW}")


def _pairs(value: object) -> tuple[tuple[int, int], ...] | None:
    if value is None:
        return None
    try:
        pairs = [tuple(pair) for pair in value]  # type: ignore[attr-defined]
    except TypeError:
        pairs = [()]
    if not pairs or not all(len(pair) == 2 and all(_is_layer(layer) for layer in pair) for pair in pairs):
        raise MiniCacheError(
            f"pairs={value!r} is not a sequence of two layer numbers each, such as [(8, 9), (10, 11)]"
        )
    seen: set[int] = set()
    for a, b in pairs:
        if a >= b:
            raise MiniCacheError(f"pair ({a}, {b}): the second layer must be the deeper one")
        if seen & {a, b}:
            raise MiniCacheError(f"pair ({a}, {b}) overlaps another pair; a layer can be in one pair only")
        seen |= {a, b}
    return tuple((int(a), int(b)) for a, b in pairs)


def _is_layer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _number(key: str, value: str, spec: str, whole: bool = False) -> float | int:
    try:
        return int(value) if whole else float(value)
    except ValueError:
        raise MiniCacheError(f"{key}={value} in {spec!r} is no number") from None


def _parse_pairs(value: str, spec: str) -> list[tuple[int, int]]:
    pairs = []
    for item in value.split(";"):
        a, _, b = item.partition("-")
        if not (a.strip().isdigit() and b.strip().isdigit()):
            raise MiniCacheError(f"pairs={value} in {spec!r} is not of the form 8-9;10-11")
        pairs.append((int(a), int(b)))
    return pairs


def _parse_switch(key: str, value: str, spec: str) -> bool:
    if value in ("0", "1"):
        return value == "1"
    raise MiniCacheError(f"{key}={value} in {spec!r} is neither 0 nor 1")

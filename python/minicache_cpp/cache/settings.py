"""How a KV cache is kept: MiniCache's settings, plain caches, and the SPEC texts that name both."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from ..errors import MiniCacheError
from ..host.paths import user_path
from ..modelfile.ggml_types import CACHE_TYPES, POOL_TYPES, cache_type, plain_cache_type
from .plan import DEFAULT_T
from .plan_file import PlanFile
from .report import types_name

SPEC_HELP = (
    'a cache type ("f16", "q8_0", "q4_0": a plain cache), "slerp:start=0.5,t=0.6,retain=0.05,type=q4_0" '
    "(also window=64, type_k, type_v, pool, pairs=8-9;10-11, strict; every key is optional; "
    "average:start=0.5,type=q4_0 averages), plain:k=q8_0,v=q4_0,first=2:f16,last=2:q8_0/q5_0 for types by layer, "
    "or the path of a plan, a .gguf file that `minicache calibrate` writes"
)
# a number of layers, and their types of K and of V
Edge = tuple[int, str, str]
PLAN_DECIDES = (
    "start", "pairs", "t", "retain", "type_k", "type_v", "pool_type", "window", "mode", "first", "last"
)  # fmt: skip
# the modes that need no plan, and what each retains where nothing else is asked for
OWN_MODES = {"slerp": 0.05, "average": 0.0, "plain": 0.0}


@dataclass(frozen=True)
class MiniCache:
    """The KV cache of neighbouring layers kept as one (MiniCache, Liu et al. 2024, arXiv 2405.14366).

    For layers a and b of a pair, per token and KV head, with u = x/|x| and Ω = arccos(u_a·u_b):

        e   = sin((1-t)Ω)/sinΩ · u_a + sin(tΩ)/sinΩ · u_b     one direction is stored for both layers
        x̂_a = |x_a|·e,   x̂_b = |x_b|·e                        each layer's magnitude is stored beside it
        δ   = Ω/π                                             the distance; the most distant are retained

    start: the first layer that may be merged: a fraction of the layers in [0, 1), or a layer number (int).
    pairs: explicit pairs (a, b), a < b, in place of `start`; None: (S, S+1), (S+2, S+3), … from the start on.
    t: in [0, 1]; 0 gives layer a's direction, 1 gives layer b's; the paper takes 0.6.
    retain: the fraction of tokens, in [0, 1], that both layers keep unmerged; by default 0.05, or 0 for averages.
    type_k, type_v: cache types of the directions and of the layers that are not merged.
    pool_type: type of the retained tokens and of the window: "f16", "q8_0", or "cache" for the cache types.
    window: how many tokens of each stream both layers keep unmerged, 0 to 65536: the first ones (min(4, window/16))
        and the latest; the paper has none.
    plan: the path of a plan, which `minicache calibrate` makes for a model, or a PlanFile that has been opened. It
        keeps groups of 1 to 4 neighbouring layers as shared codes, and decides everything above.
    strict: raise, rather than warn, where no pair (or not every explicit pair) can be merged.
    mode: "slerp", or "average" for what the paper compares with: (x_a + x_b)/2 for both layers, no magnitudes; or
        "plain", which merges nothing and may keep the layers at both ends in other types than those between them.
        A plan has the mode "code", or "aligned" for SLERP after a change of basis.
    first, last: with mode "plain", how many of the first, or last, layers whose cache grows with the context have the
        other types of K and of V that follow, such as (2, "q8_0", "q4_0").

    Afterwards `plan` is a PlanFile or None. `groups`, which is not an argument, has the layers that share storage,
    those of `pairs` or of the plan; it is None where `start` decides. Numbers are kept in single precision, as the
    native library keeps them.

    Raises MiniCacheError where a value is out of its range; the native library checks the ranges.
    """

    start: float | int = 0.5
    pairs: Iterable[tuple[int, int]] | None = None
    t: float = DEFAULT_T
    retain: float = None  # type: ignore[assignment]  # a number from __post_init__ on
    type_k: str = "f16"
    type_v: str = "f16"
    pool_type: str = "q8_0"
    window: int = 0
    plan: PlanFile | str | os.PathLike[str] | None = None
    strict: bool = False
    mode: str = "slerp"
    first: Edge | None = None
    last: Edge | None = None
    groups: tuple[tuple[int, ...], ...] | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.strict, bool):
            raise MiniCacheError(f"strict={self.strict!r} is neither True nor False")
        if self.plan is not None:
            self._take_over(PlanFile.of(self.plan))
            return
        if self.mode not in OWN_MODES:
            raise MiniCacheError(
                f"mode={self.mode!r} is none of {', '.join(OWN_MODES)}; the other modes come with a plan"
            )
        retain = OWN_MODES[self.mode] if self.retain is None else self.retain
        self._set(start=_start(self.start), pairs=_pairs(self.pairs), window=_whole("window", self.window))
        self._set(t=_real("t", self.t), retain=_real("retain", retain), groups=self.pairs)
        self._set(first=_edge("first", self.first), last=_edge("last", self.last))
        cache_type(self.type_k, "type_k")
        cache_type(self.type_v, "type_v")
        if self.pool_type not in POOL_TYPES:
            raise MiniCacheError(
                f"pool_type={self.pool_type!r} is not a pool type; choose one of {', '.join(POOL_TYPES)}"
            )
        from .native_settings import check_settings

        check_settings(self)

    def _take_over(self, file: PlanFile) -> None:
        """Takes over what the plan decides. The caller may have said the same, but nothing else."""
        plan = file.plan
        pairs = tuple(group.layers for group in plan.groups if group.n_layer == 2) or None
        decided = {"pairs": pairs} | {
            name: getattr(plan, name)
            for name in ("retain", "type_k", "type_v", "pool_type", "window", "mode", "t")
        }
        for one in fields(self):
            if one.name not in PLAN_DECIDES:
                continue
            value = getattr(self, one.name)
            if value not in (one.default, decided.get(one.name, one.default)):
                raise MiniCacheError(
                    f"{one.name}={value!r} is given beside plan={str(file)!r}, which decides it; "
                    "leave one of them out"
                )
        self._set(**decided, plan=file, groups=tuple(group.layers for group in plan.groups))

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def plan_file(self) -> PlanFile | None:
        """The plan, as it was opened."""
        return self.plan if isinstance(self.plan, PlanFile) else None

    @property
    def native_plan(self) -> Any:
        """The native library's handle on the plan, None without one."""
        return self.plan_file.native if self.plan_file is not None else None

    def edge_types(self, number: int, n_layer: int) -> tuple[str, str]:
        """The types of layer `number` of the `n_layer` whose cache grows, with mode "plain"."""
        if self.first is not None and number < self.first[0]:
            return self.first[1:]
        if self.last is not None and number >= n_layer - self.last[0]:
            return self.last[1:]
        return self.type_k, self.type_v

    @property
    def retain_block(self) -> int:
        """How many consecutive cells share one retained token, round(1/retain); 0 if none is retained."""
        from .native_settings import retain_block

        return retain_block(self.retain)

    def start_layer(self, n_layer: int) -> int:
        """The first layer that may be merged in a model of so many layers."""
        from .native_settings import start_layer

        return self.start if isinstance(self.start, int) else start_layer(self.start, n_layer)

    def spec(self) -> str:
        """The SPEC text of these settings; `CacheSpec.parse` gives them back."""
        if self.plan is not None:
            return f"plan={_quoted(str(self.plan))},strict=1" if self.strict else str(self.plan)
        types = [f"type={self.type_k}"]
        if self.mode == "plain":
            types = [f"k={self.type_k},v={self.type_v}"]
        elif self.type_k != self.type_v:
            types = [f"type_k={self.type_k}", f"type_v={self.type_v}"]
        return self._text(types)

    def environment_text(self) -> str:
        """What LLAMA_MINICACHE takes for these settings; their cache types are the program's own option there."""
        if self.plan is not None:
            return f"plan={_quoted(os.path.abspath(str(self.plan)))}" + ",strict=1" * self.strict
        return self._text([])

    def _text(self, types: list[str]) -> str:
        if self.mode == "plain":
            edges = [(name, getattr(self, name)) for name in ("first", "last")]
            keys = [*types, *(f"{name}={edge[0]}:{types_of_edge(edge)}" for name, edge in edges if edge)]
            return "plain:" + ",".join(keys) if keys else "plain"
        where = [f"start={self.start}"]
        if self.pairs is not None:
            where = ["pairs=" + ";".join(f"{a}-{b}" for a, b in self.pairs)]
        rest = [f"pool={self.pool_type}"] * (self.pool_type != "q8_0") + ["strict=1"] * self.strict
        # averages have no use for t, but a text gives back what was said
        t = [f"t={self.t}"] * (self.mode == "slerp" or self.t != DEFAULT_T)
        window = [f"window={self.window}"] * bool(self.window)
        return f"{self.mode}:" + ",".join([*where, *t, f"retain={self.retain}", *window, *types, *rest])

    @classmethod
    def parse(cls, text: str) -> MiniCache:
        """The settings of a text such as "slerp:start=0.5,t=0.6,type=q4_0"; every key is optional.

        The native library parses it: llama_minicache_parse_params() in llama-minicache.h has the grammar.
        """
        from .native_settings import parse_settings

        settings = parse_settings(text)
        if "plan" in settings:
            settings["plan"] = PlanFile.decode(settings["plan"])
        return cls(**settings)


@dataclass(frozen=True)
class CacheSpec:
    """One way to keep a cache: plain with these types, or as `minicache` says."""

    type_k: str
    type_v: str
    minicache: MiniCache | None = None

    def __post_init__(self) -> None:
        for name in ("type_k", "type_v"):
            value = plain_cache_type(getattr(self, name), name).name
            object.__setattr__(self, name, value)
            if self.minicache is not None and value != getattr(self.minicache, name):
                raise MiniCacheError(
                    f"{name}={value!r} is given beside MiniCache, whose {name} is {getattr(self.minicache, name)!r}"
                )

    @property
    def name(self) -> str:
        return self.cache if self.minicache is None else self.minicache.spec()

    @property
    def cache(self) -> str:
        """The cache type alone, as tables name it."""
        return types_name(self.type_k, self.type_v)

    @property
    def plan_file(self) -> PlanFile | None:
        return self.minicache.plan_file if self.minicache is not None else None

    @classmethod
    def of(cls, minicache: MiniCache) -> CacheSpec:
        return cls(minicache.type_k, minicache.type_v, minicache)

    @classmethod
    def parse(cls, spec: str) -> CacheSpec:
        """A SPEC, as the command line takes it: a cache type for a plain cache, a plan's path, or settings as text."""
        if (name := spec.strip()) in CACHE_TYPES:
            return cls(name, name)
        if spec and os.path.isfile(user_path(spec)):  # whatever it is called
            return cls.of(MiniCache(plan=spec))
        try:
            return cls.of(MiniCache.parse(spec))
        except MiniCacheError as error:
            advice = "" if "=" in spec else f"; give {SPEC_HELP}"
            raise MiniCacheError(f"{spec!r} is not a cache: {error}{advice}") from None


# what every other cache is compared with
F16 = CacheSpec("f16", "f16")


def types_of_edge(edge: Edge) -> str:
    """The types of the layers at an end, as a SPEC has them."""
    return types_name(*edge[1:])


def _quoted(path: str) -> str:
    """A path as a text of settings takes it, in which commas and blanks at the ends have meanings."""
    quote = "'" if '"' in path else '"'
    return f"{quote}{path}{quote}" if "," in path or path != path.strip() else path


def _start(value: object) -> float | int:
    if _is_layer(value):
        return int(value)  # type: ignore[call-overload,no-any-return]
    if isinstance(value, Real) and not isinstance(value, Integral):
        return _real("start", value)
    raise MiniCacheError(
        f"start={value!r} is neither a fraction of the layers, a float in [0, 1), "
        "nor a layer number, an int from 0 up"
    )


def _edge(name: str, value: object) -> Edge | None:
    """The layers at an end; None where they have no types of their own."""
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) not in (2, 3) or not _is_layer(value[0]):
        raise MiniCacheError(
            f'{name}={value!r} is not a number of layers and their types, such as (2, "q8_0", "q4_0")'
        )
    n_layer, type_k, type_v = int(value[0]), value[1], value[-1]
    types = cache_type(type_k, name).name, cache_type(type_v, name).name
    return (n_layer, *types) if n_layer else None


def _real(name: str, value: object) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        from .native_settings import single_precision

        with contextlib.suppress(OverflowError):
            return single_precision(float(value))
    raise MiniCacheError(f"{name}={value!r} is not a number in range")


def _whole(name: str, value: object) -> int:
    if isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) < 2**31:
        return int(value)
    raise MiniCacheError(f"{name}={value!r} is not a whole number of tokens")


def _pairs(value: object) -> tuple[tuple[int, int], ...] | None:
    if value is None:
        return None
    try:
        pairs = [tuple(pair) for pair in value]  # type: ignore[attr-defined]
    except TypeError:
        pairs = [()]
    if not pairs or not all(len(pair) == 2 and all(map(_is_layer, pair)) for pair in pairs):
        raise MiniCacheError(
            f"pairs={value!r} is not a sequence of two layer numbers each, such as [(8, 9), (10, 11)]"
        )
    return tuple((int(a), int(b)) for a, b in pairs)


def _is_layer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < 2**31

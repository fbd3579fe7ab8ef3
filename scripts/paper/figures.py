"""Which caches each figure compares: those of the paper's figures, and those that this project adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minicache_cpp import CacheSpec, MiniCache

MERGING = ("average", "slerp", "aligned")
PAPER_T, PAPER_RETAIN = 0.6, 0.05
TS = (0.3, 0.4, 0.5, 0.6, 0.7)
RETAINS = (0.0, 0.01, 0.05, 0.1, 0.2)
RATIOS = (5.0, 8.0, 10.0)  # of codes in the table of ratios


@dataclass(frozen=True)
class Config:
    """One way to keep the cache; its label is its name in the results."""

    mode: str  # "plain", "average", "slerp", "aligned", or "code"
    start: int = 0  # the first layer that is merged; later ones are merged two by two
    t: float = PAPER_T
    retain: float = PAPER_RETAIN
    kind: str = "f16"  # cache type
    # the least ratio of a code; 0 for no more bytes than SLERP of this type takes
    ratio: float = 0.0

    @property
    def label(self) -> str:
        if self.mode == "plain":
            return self.kind
        if self.mode == "code":
            size = f"ratio={self.ratio:g}" if self.ratio else f"like=slerp {self.kind}"
            return f"code:start={self.start},{size}"
        return self.settings.spec().replace("slerp:", f"{self.mode}:")

    @property
    def settings(self) -> MiniCache:
        """The settings of MiniCache; for an aligned configuration, those that its plan is written with."""
        return MiniCache(
            start=self.start,
            t=self.t,
            retain=self.retain,
            type_k=self.kind,
            type_v=self.kind,
            mode="average" if self.mode == "average" else "slerp",
        )

    @property
    def spec(self) -> CacheSpec:
        """The setting of a cache that needs no plan."""
        return CacheSpec(self.kind, self.kind) if self.mode == "plain" else CacheSpec.of(self.settings)


@dataclass(frozen=True)
class Curve:
    name: str
    points: tuple[tuple[float, Config], ...]


@dataclass(frozen=True)
class Figure:
    name: str  # of the plot's file
    title: str
    x: str  # what the horizontal axis shows; "" for a table of ratios
    curves: tuple[Curve, ...]

    @property
    def configs(self) -> list[Config]:
        return [config for curve in self.curves for _, config in curve.points]


def merging(mode: str, start: int, kind: str, t: float = PAPER_T, retain: float = PAPER_RETAIN) -> Config:
    """A merging configuration; averages retain nothing, as in the paper."""
    if mode == "average":
        return Config(mode, start, retain=0.0, kind=kind)
    return Config(mode, start, t, retain, kind)


def starts(n_layer: int) -> list[int]:
    """The start layers to merge from, deepest first, chosen so that the last pair ends with the last layer."""
    return list(range(n_layer - 2, -1, -2))


def layers_figure(n_layer: int, kind: str) -> Figure:
    """Quality over the number of merged layers: the paper's figure on averaging and SLERP."""
    curves = []
    for mode in (*MERGING, "code"):
        points = []
        for start in starts(n_layer):
            config = Config("code", start, kind=kind) if mode == "code" else merging(mode, start, kind)
            points.append(((n_layer - start) / n_layer, config))
        curves.append(Curve(mode, tuple(points)))
    full = Config("plain", kind=kind)
    curves.append(Curve(f"full ({kind})", ((0.0, full), (1.0, full))))
    return Figure(f"layers-{kind}", f"merged layers, {kind}", "share of the layers merged", tuple(curves))


def middle(n_layer: int) -> int:
    """The paper's start layer, half way down."""
    return min(starts(n_layer), key=lambda start: abs(2 * start - n_layer))


def t_figure(n_layer: int, kind: str) -> Figure:
    start = middle(n_layer)
    curves = [
        Curve(mode, tuple((t, merging(mode, start, kind, t=t)) for t in TS)) for mode in ("slerp", "aligned")
    ]
    return Figure("t", f"t, layers {start} and deeper, {kind}", "t", tuple(curves))


def retain_figure(n_layer: int, kind: str) -> Figure:
    start = middle(n_layer)
    curves = [
        Curve(mode, tuple((one, merging(mode, start, kind, retain=one)) for one in RETAINS))
        for mode in ("slerp", "aligned")
    ]
    title = f"retained tokens, layers {start} and deeper, {kind}"
    return Figure("retain", title, "fraction of the tokens retained", tuple(curves))


def ratio_figure(n_layer: int) -> Figure:
    """Quality over the ratio, with 4-bit caches: the paper's 5.02x, plain caches beside it, and codes."""
    curves = [
        Curve("plain", tuple((0.0, Config("plain", kind=kind)) for kind in ("q8_0", "q4_0"))),
        *(
            Curve(
                f"{mode} q4_0",
                tuple(
                    (0.0, merging(mode, start, "q4_0")) for start in sorted({middle(n_layer), n_layer % 2})
                ),
            )
            for mode in MERGING
        ),
        Curve("code", tuple((0.0, Config("code", n_layer % 2, ratio=ratio)) for ratio in RATIOS)),
    ]
    return Figure("ratio", "quality over the ratio", "", tuple(curves))


FIGURES = ("layers", "t", "retain", "ratio")


def figures(n_layer: int, names: Sequence[str], kinds: Sequence[str]) -> list[Figure]:
    found = []
    for name in names:
        if name == "layers":
            found += [layers_figure(n_layer, kind) for kind in kinds]
        elif name == "t":
            found.append(t_figure(n_layer, kinds[0]))
        elif name == "retain":
            found.append(retain_figure(n_layer, kinds[0]))
        else:
            found.append(ratio_figure(n_layer))
    return found

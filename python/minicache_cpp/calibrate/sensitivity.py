"""What errors of each layer's K and V do to the model's output, as measured on it.

With every layer in a code of its own at 8 bits but one layer's K (or V) at 3, the KL divergence that this adds, per
unit of squared error, is the sensitivity of that layer's K (or V). Layers that share a code have each its own, so that
the code spends its bits on the one that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..cache.code_format import KINDS, Kind, Layout
from .allocation import Choice
from .code_fit import CHOICES
from .group_fit import GroupFit, LayerWeights

EXACT_WIDTH = 8
PROBE_WIDTH = 3  # near to what a plan of a ratio of 5 has; at 1 and at 2 bits sensitivities are much the same
LEAST_SHARE = 0.02  # of the mean: a part that adds less is not trusted to be that harmless

# the KL divergence of a choice for each layer; with its name
Measure = Callable[[Sequence[Choice], str], float]


@dataclass(frozen=True)
class Sensitivities:
    """What is lost for errors of each layer's K and V, as KL divergence."""

    of: Mapping[tuple[Kind, int], float]  # per unit of weighted squared error
    whole: Mapping[tuple[Kind, int], float]  # as expected of an error as large as all that there is
    plain: float = 1.0  # what plain types lose, as measured, over what the losses of codes let expect

    def scaled(self, weights: LayerWeights) -> LayerWeights:
        """Weights that make the squared error the KL divergence that is expected of it."""
        return {
            layer: {kind: one * self.of[kind, layer] for kind, one in both.items()}
            for layer, both in weights.items()
        }


def uniform(n_unit: int, width: int) -> Layout:
    """All units of one width, none with 0."""
    return Layout.of([width] * n_unit)


def exact(fit: GroupFit) -> Choice:
    """A code as good as it can be."""
    return Choice(uniform(fit.k.n_unit, EXACT_WIDTH), uniform(fit.v.n_unit, EXACT_WIDTH))


def measure_sensitivities(
    singles: Sequence[GroupFit],
    measure: Measure,
    widths: Mapping[tuple[Kind, int], int] | None = None,
) -> Sensitivities:
    """Measure those of all layers, each part at 3 bits in turn, or at its own width.

    `singles` are the codes of each layer by itself.
    """
    best = [exact(one) for one in singles]
    base = measure(best, f"all layers at {EXACT_WIDTH} bits")
    added, errors, wholes = {}, {}, {}
    for kind in KINDS:
        for index, one in enumerate(singles):
            part, key = one.part(kind), (kind, one.first)
            coarse = uniform(part.n_unit, (widths or {}).get(key, PROBE_WIDTH))
            wholes[key] = part.error(Layout())
            errors[key] = part.error(coarse) - part.error(uniform(part.n_unit, EXACT_WIDTH))
            choices = list(best)
            choices[index] = replace(best[index], k=coarse) if kind == "k" else replace(best[index], v=coarse)
            added[key] = max(measure(choices, f"{kind.upper()} of layer {one.first}") - base, 0.0)
    least = max(LEAST_SHARE * sum(added.values()) / max(1, len(added)), 1e-9)
    of = {key: max(one, least) / max(errors[key], 1e-30) for key, one in added.items()}
    return Sensitivities(of, {key: of[key] * whole for key, whole in wholes.items()})


def widths_like(
    fit: GroupFit, choice: Choice, singles: Mapping[int, GroupFit]
) -> dict[tuple[Kind, int], int]:
    """At how many bits each layer by itself has about the error that it has in a group's code."""
    found: dict[tuple[Kind, int], int] = {}
    for kind in KINDS:
        part, layout = fit.part(kind), choice.k if kind == "k" else choice.v
        errors = part.layer_errors(layout or Layout(), len(fit.layers))
        whole = part.layer_errors(Layout(), len(fit.layers))
        for layer, share in zip(fit.layers, errors / np.maximum(whole, 1e-30), strict=True):
            own = singles[layer].part(kind)
            shares = {
                width: own.error(uniform(own.n_unit, width)) / max(own.error(Layout()), 1e-30)
                for width in CHOICES
                if 0 < width < EXACT_WIDTH
            }
            found[kind, layer] = min(
                shares, key=lambda width: abs(np.log(max(shares[width], 1e-30) / max(share, 1e-30)))
            )
    return found

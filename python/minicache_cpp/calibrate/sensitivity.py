"""Measures how much errors in each layer's K and V change the model's output.

Every layer is coded by itself at 8 bits, except for one layer's K (or V), which has 3. The KL divergence that this
adds, per unit of weighted squared error, is the sensitivity of that layer's K (or V). Layers that share a code have
sensitivities of their own, so that the code spends its bits on the layer that needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..cache.code_format import KINDS, Kind
from .allocation import Choice
from .code_fit import CHOICES
from .group_fit import GroupFit, LayerWeights

EXACT_WIDTH = 8
# about the width that a plan of ratio 5 has; at 1 and 2 bits sensitivities are nearly the same
PROBE_WIDTH = 3
# the least divergence that a part is taken to add, relative to the mean: a smaller one may be chance
LEAST_SHARE = 0.02

# measures the KL divergence of one choice for each layer; the text names the measurement in the progress line
Measure = Callable[[Sequence[Choice], str], float]


@dataclass(frozen=True)
class Sensitivities:
    """The KL divergence that errors in each layer's K and V cause, by kind and layer."""

    # per unit of weighted squared error
    of: Mapping[tuple[Kind, int], float]
    # the expected loss if all of K, or of V, were lost
    whole: Mapping[tuple[Kind, int], float]
    # what plain types lose, as measured, over what the sensitivities of codes predict
    plain: float = 1.0

    def scaled(self, weights: LayerWeights) -> LayerWeights:
        """The weights with which a weighted squared error is the KL divergence that it is expected to cause."""
        return {
            layer: {kind: one * self.of[kind, layer] for kind, one in both.items()}
            for layer, both in weights.items()
        }


def exact(fit: GroupFit) -> Choice:
    """The most exact code."""
    return Choice(fit.k.uniform(EXACT_WIDTH), fit.v.uniform(EXACT_WIDTH))


def measure_sensitivities(
    singles: Sequence[GroupFit],
    measure: Measure,
    widths: Mapping[tuple[Kind, int], int] | None = None,
) -> Sensitivities:
    """Measures the sensitivities of all layers.

    Codes one layer's K or V at a time at 3 bits, or at the width that `widths` gives for it, and all others exactly.
    `singles` are the codes of the layers by themselves.
    """
    best = [exact(one) for one in singles]
    exact_kl = measure(best, f"all layers at {EXACT_WIDTH} bits")
    added, errors, wholes = {}, {}, {}
    for kind in KINDS:
        for index, one in enumerate(singles):
            part, key = one.part(kind), (kind, one.first)
            coarse = part.uniform((widths or {}).get(key, PROBE_WIDTH))
            wholes[key] = part.whole
            errors[key] = part.error(coarse) - part.error(part.uniform(EXACT_WIDTH))
            choices = list(best)
            choices[index] = replace(best[index], k=coarse) if kind == "k" else replace(best[index], v=coarse)
            added[key] = max(measure(choices, f"{kind.upper()} of layer {one.first}") - exact_kl, 0.0)
    least = max(LEAST_SHARE * sum(added.values()) / max(1, len(added)), 1e-9)
    of = {key: max(one, least) / max(errors[key], 1e-30) for key, one in added.items()}
    return Sensitivities(of, {key: of[key] * whole for key, whole in wholes.items()})


def widths_like(
    fit: GroupFit, choice: Choice, singles: Mapping[int, GroupFit]
) -> dict[tuple[Kind, int], int]:
    """The widths at which the layers of a group, each coded by itself, have about the errors they have in its code."""
    found: dict[tuple[Kind, int], int] = {}
    for kind in KINDS:
        part, layouts = fit.part(kind), choice.k if kind == "k" else choice.v
        nothing = part.uniform(0)
        errors = part.layer_errors(layouts or nothing, len(fit.layers))
        whole = part.layer_errors(nothing, len(fit.layers))
        for layer, share in zip(fit.layers, errors / np.maximum(whole, 1e-30), strict=True):
            own = singles[layer].part(kind)
            shares = {
                width: own.error(own.uniform(width)) / max(own.whole, 1e-30)
                for width in CHOICES
                if 0 < width < EXACT_WIDTH
            }
            found[kind, layer] = min(
                shares, key=lambda width: abs(np.log(max(shares[width], 1e-30) / max(share, 1e-30)))
            )
    return found

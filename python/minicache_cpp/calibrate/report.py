"""What a calibration chose and measured, as JSON-ready objects: in the plan's notes, and as the command's result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..cache.code_format import Layouts
from ..cache.plan import Plan
from ..cache.size import plan_bytes, plan_fixed_bytes
from .code_fit import PartFit
from .material import Material
from .meter import Measured
from .planner import Planner
from .search import Found, Search
from .target import Target, ratio

# the plain types that a plan is compared with
COMPARED = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True)
class Checked:
    """A plan, and its loss on held-out text."""

    found: Found
    measured: Measured


def choice_rows(planner: Planner, found: Found) -> list[dict[str, Any]]:
    """One row for each group: what was chosen for it, its sensitivities, and its share of the expected loss."""
    if found.choices is None:
        return []
    whole = planner.sensitivities.whole
    candidates = planner.candidates(found.fits)
    losses = [one.loss(choice) for one, choice in zip(candidates, found.choices, strict=True)]
    rows = []
    for fit, choice, loss in zip(found.fits, found.choices, losses, strict=True):
        row: dict[str, Any] = {
            "layers": list(fit.layers),
            "kind": "code" if choice.coded else "plain",
            "types": [list(names) for names in choice.types] or None,
            "sensitivity_k": [whole["k", number] for number in fit.layers],
            "sensitivity_v": [whole["v", number] for number in fit.layers],
            "share": loss / sum(losses) if sum(losses) else 0.0,
        }
        for kind, layouts, part in (("k", choice.k, fit.k), ("v", choice.v, fit.v)):
            row |= {
                f"bits_{kind}": bits(part, layouts) if layouts else None,
                f"units_{kind}": [list(one.units) for one in layouts] if layouts else None,
                f"error_{kind}": relative_error(part, layouts) if layouts else None,
                f"layer_error_{kind}": layer_errors(part, layouts, len(fit.layers)) if layouts else None,
            }
        rows.append(row)
    return rows


def bits(part: PartFit, layouts: Layouts) -> float:
    """The bits for each number of K, or V, the mean over the KV heads."""
    return sum(one.bits for one in layouts) / part.weight.size


def relative_error(part: PartFit, layouts: Layouts) -> float:
    """The weighted squared error of codes of these layouts, relative to that of no code at all."""
    whole = part.whole
    return part.error(layouts) / whole if whole else 0.0


def layer_errors(part: PartFit, layouts: Layouts, n_layer: int) -> list[float]:
    """The relative error of each layer of the group."""
    pairs = zip(part.layer_errors(layouts, n_layer), part.layer_errors(part.uniform(0), n_layer), strict=True)
    return [float(error / whole) if whole else 0.0 for error, whole in pairs]


def comparison(search: Search, checked: Checked, n_ctx: int) -> list[dict[str, Any]]:
    """The plan and the plain types of COMPARED, a row each: bytes at n_ctx tokens, and the loss on the check's text."""
    shape, builder = search.shape, search.builder
    plans = [("plan", checked.found.plan, checked.measured)]
    for name in COMPARED:
        if name in builder.types():
            plain = builder.plain(name)
            measured = search.trials.measure(plain, "check", f"{name}, for comparison")
            plans.append((name, plain, measured))
    f16 = plan_bytes(shape, builder.plain("f16"), n_ctx)
    rows = []
    for name, plan, measured in plans:
        n_bytes = plan_bytes(shape, plan, n_ctx)
        rows.append(
            {
                "name": name,
                "bytes": n_bytes,
                "fixed_bytes": plan_fixed_bytes(shape, plan, n_ctx),
                "ratio": ratio(shape, plan),
                "total_ratio": f16 / n_bytes,
                "kl": measured.kl,
                "kl_error": measured.kl_error,
                "top1": measured.top1,
            }
        )
    return rows


def notes(target: Target, checked: Checked, choices: list[dict[str, Any]]) -> dict[str, Any]:
    """What a plan's notes say."""
    measured = checked.found.measured
    return {
        "target": str(target),
        "why": checked.found.why,
        "choices": choices,
        "window": checked.found.plan.window,
        "measured": {"kl": measured.kl, "top1": measured.top1},
        "checked": {
            "kl": checked.measured.kl,
            "kl_error": checked.measured.kl_error,
            "top1": checked.measured.top1,
        },
    }


def report(
    plan: Plan, material: Material, n_ctx: int, compared: list[dict[str, Any]], checked: Checked
) -> dict[str, Any]:
    """What the command prints with --json, beside the paths of model and plan; `plan` has its notes."""
    return {
        "fingerprint": plan.fingerprint,
        "target": plan.notes["target"],
        "why": plan.notes["why"],
        "choices": plan.notes["choices"],
        "plain": {
            "type_k": plan.type_k,
            "type_v": plan.type_v,
            "layers": {str(one.layer): list(one.types) for one in plan.plain},
        },
        "rope_block": plan.rope_block,
        "window": plan.window,
        "pool_type": plan.pool_type,
        "tokens": {
            kind: sum(len(one.tokens) for one in getattr(material, kind))
            for kind in ("fit", "measure", "check")
        },
        "context": n_ctx,
        # the longest context that the loss was measured at
        "checked_at": max(len(one.tokens) for one in material.check),
        "kl_measured": checked.found.measured.kl,
        "rows": compared,
    }

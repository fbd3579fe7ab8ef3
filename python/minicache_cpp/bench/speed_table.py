"""The table of speeds that speed.py measures."""

from __future__ import annotations

from typing import Any

from ..host.units import mib
from .speed import N_BATCH


def table(found: dict[str, Any]) -> str:
    """A block of lines for each number of tokens in the cache, a line for each cache."""
    lines = [
        f"{found['model']} on {found['device']}, {found['threads']} threads",
        "tokens/s: median ± half the distance between the quartiles",
    ]
    if found["fill"] == "copies":
        lines.append(
            f"prefill is that of the first {N_BATCH} tokens at most; the rest of a context are copies of them"
        )
    rows = found["rows"]
    width = max(len(one["minicache"] or one["cache"]) for one in rows)
    for n_kv in dict.fromkeys(one["n_kv"] for one in rows):
        lines += [
            "",
            f"{f'context {n_kv}':<{width}}  {'KV':>11}"
            + "".join(f"  {name:>16}  {'x plain':>7}" for name in ("prefill", "decode")),
        ]
        for one in (one for one in rows if one["n_kv"] == n_kv):
            cells = [f"{one['minicache'] or one['cache']:<{width}}", f"{mib(one['kv_bytes']):>11}"]
            for name in ("prefill", "decode"):
                spread = one[f"{name}_iqr"]
                speed = f"{one[f'{name}_tps']:.1f}" + (f" ± {spread / 2:.1f}" if spread is not None else "")
                relative = one[f"{name}_vs_plain"]
                cells += [f"{speed:>16}", f"{relative:>7.2f}" if relative is not None else f"{'':>7}"]
            lines.append("  ".join(cells))
    return "\n".join(lines)

"""The table of where time goes, which ops.py measures."""

from __future__ import annotations

from typing import Any

from .ops import KEEPING, KINDS


def table(found: dict[str, Any]) -> str:
    """A block of lines for each place that is measured, a line for each cache."""
    rows = found["rows"]
    width = max(len(one["minicache"] or one["cache"]) for one in rows)
    lines = [
        f"{found['model']} on {found['device']}, {found['threads']} threads",
        "ms for a prompt's last chunk, and for a token behind it; the share of each kind of operation in per cent",
        f"keeping: {', '.join(KEEPING)} together",
    ]
    for place in dict.fromkeys((one["n_kv"], one["phase"], one["tokens"]) for one in rows):
        n_kv, phase, tokens = place
        head = f"context {n_kv}, {phase} of {tokens}"
        lines += [
            "",
            f"{head:<{max(width, 30)}}  {'ms':>9}" + "".join(f"  {kind:>9}" for kind in (*KINDS, "keeping")),
        ]
        for one in rows:
            if (one["n_kv"], one["phase"], one["tokens"]) == place:
                shares = [*one["shares"].values(), one["keeping"]]
                lines.append(
                    f"{one['minicache'] or one['cache']:<{max(width, 30)}}  {one['seconds'] * 1e3:>9.2f}"
                    + "".join(f"  {share * 100:>9.2f}" for share in shares)
                )
    return "\n".join(lines)

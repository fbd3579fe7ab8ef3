"""What a calibration reports, as text for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..cache.report import held_tokens, types_name
from ..host.units import mib


def table(found: dict[str, Any]) -> str:
    """What was chosen and why, and how the plan compares with plain caches; `found` is what calibrate() returns."""
    lines = [f"{Path(found['model']).name}: {found['target']}; {found['why']}"]
    if found["choices"]:
        lines += ["", "layers     bits/value K     V   error K      V   share of the loss"]
        lines += [_choice(row) for row in found["choices"]]
    if found["rope_block"]:
        lines.append(f"K is coded relative to blocks of {found['rope_block']} positions")
    if found["window"]:
        exact = held_tokens(found["window"])
        lines.append(f"{exact} are kept as {found['pool_type']}, and more in long contexts")
    lines += ["", f"cache at {found['context']} tokens      taken   ratio  total      KL   ± error    top-1"]
    for row in found["rows"]:
        lines.append(
            f"{row['name']:<16} {mib(row['bytes']):>16}  {row['ratio']:>6.2f} {row['total_ratio']:>6.2f}  "
            f"{row['kl']:>6.4f}  {row['kl_error']:>8.4f}  {row['top1']:>7.1%}"
        )
    lines.append(
        f"measured on {found['tokens']['check']} tokens of held-out text in contexts of {found['checked_at']}, "
        "with all earlier tokens read from the cache"
    )
    lines.append(f"plan: {found['plan']}")
    return "\n".join(lines)


def _choice(row: dict[str, Any]) -> str:
    layers = "+".join(map(str, row["layers"]))
    if row["types"]:
        types = ", ".join(types_name(*names) for names in row["types"])
        return f"{layers:<8}  {'plain ' + types:<35}   {row['share']:>17.1%}"
    return (
        f"{layers:<8}  {row['bits_k']:>13.2f} {row['bits_v']:>5.2f}   {row['error_k']:>7.2%} "
        f"{row['error_v']:>6.2%}   {row['share']:>17.1%}"
    )


def aligned_table(found: dict[str, Any]) -> str:
    """The mean distances of each pair without and with basis matrices; `found` is what align() returns."""
    lines = [
        f"{Path(found['model']).name}: SLERP after a change of basis, {found['settings'].partition(':')[2]}",
        "mean distances on held-out text (0: the same direction, 0.5: unrelated)",
        "layers    K before  aligned   V before  aligned",
    ]
    for row in found["pairs"]:
        columns = zip(row["distance_before"], row["distance_after"], strict=True)
        numbers = "".join(f"{before:>10.3f} {after:>8.3f} " for before, after in columns)
        lines.append("{}+{}".format(*row["layers"]).ljust(8) + numbers.rstrip())
    lines.append(f"plan: {found['plan']}")
    return "\n".join(lines)

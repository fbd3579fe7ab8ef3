"""The Markdown tables that bench_speed.py writes to DIR/speed.md, and prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# the legend of attention_cell()
CELLS = (
    "A cell gives the ms of our op ± half the distance between the quartiles; how many times as long upstream's op "
    "takes on the same rows, or for codes on q4_0 rows of the same layer; and the bytes over time as a share of the "
    "measured memory read, which short caches exceed as they lie in the processor's own, or for codes the time over "
    "ours of q4_0 rows. A call is for one layer: a code row, which serves two layers, is read by both calls."
)

# bits of a code's units, in the order in which the name of a case counts them
WIDTHS = (8, 6, 5, 4, 3, 2, 1)


@dataclass(frozen=True)
class Case:
    """An attention case of `minicache-test perf --json`."""

    # f16, q8_0, q4_0, slerp, or "code K/V" with the bits of each value
    type: str
    n_kv: int
    head_size: int
    n_gqa: int
    # sequences, and the tokens of each
    batch: int
    tokens: int
    threads: int
    # GB/s
    memory_read: float
    # by name: ours, upstream, ours q4_0, upstream q4_0
    results: Mapping[str, Mapping[str, Any]]

    @property
    def ours(self) -> Mapping[str, Any]:
        return self.results["ours"]

    @property
    def upstream(self) -> Mapping[str, Any]:
        """Upstream's op on the same rows, or on q4_0 rows of the same layer."""
        return self.results.get("upstream") or self.results["upstream q4_0"]

    def times(self, name: str) -> float:
        """How many times as long as ours the result of this name takes."""
        return float(self.results[name]["median_us"] / self.ours["median_us"])

    @property
    def times_upstream(self) -> float:
        return float(self.upstream["median_us"] / self.ours["median_us"])


def cases_of(found: Mapping[str, Any]) -> list[Case]:
    """The attention cases in the object that perf printed; other ops are left out."""
    cases = []
    for row in found["rows"]:
        if row["op"] not in ("ATTN", "ATTN_CODE"):
            continue
        name = dict(part.split("=") for part in row["case"].split(","))
        d = int(name["d"])
        cases.append(
            Case(
                type_of(name["type"], d),
                int(name["n_kv"]),
                d,
                int(name["n_gqa"]),
                int(name["n_stream"]),
                int(name["n_tps"]),
                row["threads"],
                row["memory_read_gbps"],
                {one["name"]: one for one in row["results"]},
            )
        )
    return cases


def type_of(name: str, head_size: int) -> str:
    """The type of a case; "code-K-V", which counts units of 16 coefficients, becomes bits per value of two layers."""
    if not name.startswith("code-"):
        return name
    bits = [
        16 * sum(int(n) * width for n, width in zip(units.split("."), WIDTHS, strict=True)) / (2 * head_size)
        for units in name.split("-")[1:]
    ]
    return f"code {bits[0]:.0f}/{bits[1]:.0f}"


def attention_cell(case: Case | None) -> str:
    """One cell, as CELLS explains it; empty where there is no case."""
    if case is None:
        return ""
    ours = case.ours
    spread = (ours["q3_us"] - ours["q1_us"]) / 2
    place = "ours q4_0" if "ours q4_0" in case.results else ""
    last = f"{1 / case.times(place):.2f} q4_0" if place else f"{ours['gbps'] / case.memory_read:.0%}"
    return f"{ms(ours['median_us'])} ± {ms(spread)}, {case.times_upstream:.1f}x, {last}"


def ms(us: float) -> str:
    value = us / 1000
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def attention_tables(cases: Sequence[Case]) -> str:
    """Tables of decode of one and of several sequences, and of prefill, for each number of threads."""
    types = list(dict.fromkeys(case.type for case in cases))
    parts = []
    for threads in dict.fromkeys(case.threads for case in cases):
        here = [case for case in cases if case.threads == threads]
        title = f"{threads} thread{'s' * (threads > 1)}; memory read {here[0].memory_read:.1f} GB/s"
        for what, chosen in (
            ("one token of one sequence", [c for c in here if c.batch == 1 and c.tokens == 1]),
            ("one token of each of several sequences", [c for c in here if c.batch > 1]),
            ("prefill", [c for c in here if c.tokens > 1]),
        ):
            if chosen:
                parts += [f"**{what[0].upper()}{what[1:]}, {title}**", one_attention_table(chosen, types)]
    return "\n\n".join(parts)


def one_attention_table(cases: Sequence[Case], types: Sequence[str]) -> str:
    by_place: dict[tuple[int, ...], dict[str, Case]] = {}
    for case in cases:
        place = (case.head_size, case.n_gqa, case.batch, case.tokens, case.n_kv)
        by_place.setdefault(place, {})[case.type] = case
    types = [one for one in types if any(one in found for found in by_place.values())]
    rows = [
        [*map(str, place), *(attention_cell(found.get(one)) for one in types)]
        for place, found in sorted(by_place.items())
    ]
    return markdown(["head size", "GQA", "sequences", "tokens", "cells", *types], rows)


def model_table(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The speed of whole models, from `minicache bench --json`; names: what to call each SPEC."""
    rows = []
    for row in found["rows"]:
        base = {
            one["cache"]: one
            for one in found["rows"]
            if one["n_kv"] == row["n_kv"] and one["minicache"] is None
        }
        cells = [name_of(row, names), str(row["n_kv"]), f"{row['kv_bytes'] / 2**20:.1f}"]
        for what in ("prefill", "decode"):
            cells.append(plus_minus(row[f"{what}_tps"], row[f"{what}_iqr"]))
            for cache in ("q4_0", "f16"):
                plain = base.get(cache)
                cells.append(f"{row[f'{what}_tps'] / plain[f'{what}_tps']:.2f}" if plain else "")
        rows.append(cells)
    head = [
        "cache",
        "context",
        "KV MiB",
        "prefill",
        "over q4_0",
        "over f16",
        "decode",
        "over q4_0",
        "over f16",
    ]
    return markdown(head, rows)


def ops_table(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The share of each kind of operation, from `minicache bench --ops --json`."""
    kinds = list(found["rows"][0]["shares"]) if found["rows"] else []
    rows = [
        [
            name_of(row, names),
            str(row["n_kv"]),
            f"{row['phase']}, {row['tokens']}",
            f"{row['seconds'] * 1e3:.1f}",
            *(f"{row['shares'][kind]:.1%}" for kind in kinds),
            f"{row['keeping']:.1%}",
        ]
        for row in found["rows"]
    ]
    return markdown(["cache", "context", "tokens", "ms", *kinds, "index to pool"], rows)


def throughput_table(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Tokens per second at a fixed budget, from bench_throughput.py or, in the same form, llama-batched-bench."""
    lines = [
        [
            row["how"],
            names.get(row["cache"], row["cache"]),
            str(row["cells"]),
            str(row["sequences"]),
            f"{row['kv_bytes'] / 2**20:.0f}" if row["kv_bytes"] else "",
            f"{row['tps']:.1f}",
            f"{row['times']:.2f}",
        ]
        for row in rows
    ]
    head = ["measured with", "cache", "cells of a sequence", "sequences", "KV MiB", "tokens/s", "over f16"]
    return markdown(head, lines)


def name_of(row: Mapping[str, Any], names: Mapping[str, str]) -> str:
    spec = str(row["minicache"] or row["cache"])
    return names.get(spec, spec)


def plus_minus(value: float, iqr: float | None) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}" + (f" ± {iqr / 2:.{digits}f}" if iqr is not None else "")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])

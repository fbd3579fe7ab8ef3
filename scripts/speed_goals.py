"""The goals for speed on the CPU, beside what bench_speed.py measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from speed_tables import Case, cases_of, markdown, name_of

NOISE = 0.05  # what "not slower" may be slower by
LONG, SHORT = 16384, 512  # cells


@dataclass(frozen=True)
class Goal:
    """A quantity, the bound it is asked to keep, and what was measured."""

    what: str
    asked: float  # the least value, or with at_most the greatest
    found: float
    at_most: bool = False
    percent: bool = False

    @property
    def reached(self) -> bool:
        return self.found <= self.asked if self.at_most else self.found >= self.asked

    def row(self) -> list[str]:
        sign = "≤" if self.at_most else "≥"
        asked, found = (
            f"{value:.1%}" if self.percent else f"{value:.2f}" for value in (self.asked, self.found)
        )
        return [self.what, f"{sign} {asked}", found, "yes" if self.reached else "**no**"]


def goals_table(parts: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The goals that the measured parts say something about; names: how tables call a SPEC."""
    goals: list[Goal] = []
    if "attention" in parts:
        goals += attention_goals(cases_of(parts["attention"]))
    if "model" in parts:
        goals += model_goals(parts["model"]["rows"], names)
    if "demo" in parts:
        found = parts["demo"]
        rows = [row for one in (found if isinstance(found, list) else [found]) for row in one["rows"]]
        goals += demo_goals(rows, names)
    for one in parts.get("ops", ()):
        goals += ops_goals(one, names)
    return markdown(["goal", "asked", "found", "reached"], [goal.row() for goal in goals])


def attention_goals(cases: Sequence[Case]) -> Iterator[Goal]:
    """On all threads, heads of 128."""
    most = max((case.threads for case in cases), default=0)
    here = {
        (case.type, case.n_kv, case.n_gqa, case.tokens): case
        for case in cases
        if case.threads == most and case.head_size == 128 and case.batch == 1
    }
    for n_gqa, asked in ((4, {"q4_0": 10, "q8_0": 6, "f16": 3.5}), (1, {"q4_0": 4, "q8_0": 2.5, "f16": 1.3})):
        for kind, times in asked.items():
            case = here.get((kind, LONG, n_gqa, 1))
            if case:
                yield Goal(f"decode at {LONG}, GQA {n_gqa}, {kind} over upstream", times, case.times_upstream)
        f16, q4_0 = (here.get((kind, LONG, n_gqa, 1)) for kind in ("f16", "q4_0"))
        if f16 and q4_0:
            ratio = f16.ours["median_us"] / q4_0.ours["median_us"]
            yield Goal(f"decode at {LONG}, GQA {n_gqa}, q4_0 over f16, both ours", 1 - NOISE, ratio)
    for (kind, n_kv, n_gqa, tokens), case in here.items():
        if kind.startswith("code") and n_kv == LONG and tokens == 1 and n_gqa == 4:
            yield Goal(
                f"decode at {LONG}, GQA 4, {kind} over ours of q4_0", 1 - NOISE, case.times("ours q4_0")
            )
    prefill = {kind: c for (kind, n_kv, _, tokens), c in here.items() if n_kv == LONG and tokens > 1}
    for rival, asked_times in (("q4_0", 10), ("f16", 2)):
        if rival in prefill:
            slowest = max(case.ours["median_us"] for case in prefill.values())
            ratio = prefill[rival].upstream["median_us"] / slowest
            yield Goal(f"prefill at {LONG}, slowest type, over upstream's {rival}", asked_times, ratio)
    short = [case.times_upstream for case in cases if case.threads == most and case.n_kv == SHORT]
    if short:
        yield Goal(f"at {SHORT}, the least of all cases over upstream", 1 - NOISE, min(short))


def model_goals(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[Goal]:
    plain = {row["cache"]: row for row in rows if row["n_kv"] == LONG and row["minicache"] is None}
    for row in rows:
        if row["n_kv"] != LONG or row["minicache"] is None:
            continue
        for cache, asked in (("q4_0", 3.0), ("f16", 1.5)):
            if cache in plain:
                ratio = row["decode_tps"] / plain[cache]["decode_tps"]
                yield Goal(
                    f"model, decode at {LONG}, {name_of(row, names)} over upstream {cache}", asked, ratio
                )


def demo_goals(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Iterator[Goal]:
    f16 = {
        row["n_kv"]: row["decode_tps"] for row in rows if row["minicache"] is None and row["cache"] == "f16"
    }
    least: dict[str, float] = {}
    for row in rows:
        if row["minicache"] is not None and row["n_kv"] in f16:
            name = name_of(row, names)
            least[name] = min(least.get(name, 1e9), row["decode_tps"] / f16[row["n_kv"]])
    for name, ratio in least.items():
        yield Goal(f"demo model, decode, {name} over upstream f16, at its worst", 1 - NOISE, ratio)


def ops_goals(found: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Goal]:
    model = found["model"].replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".gguf")
    for phase, asked in (("prefill", 0.03), ("decode", 0.02)):
        worst: dict[str, float] = {}
        for row in found["rows"]:
            if row["phase"] == phase and row["minicache"] is not None:
                name = name_of(row, names)
                worst[name] = max(worst.get(name, 0.0), row["keeping"])
        for name, share in worst.items():
            what = f"{model}, merge, encode, pool and index in {phase}, {name}, at their most"
            yield Goal(what, asked, share, at_most=True, percent=True)

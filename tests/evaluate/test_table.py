"""The tables of an evaluation: how caches with long names are shown, and how wide they are."""

from __future__ import annotations

import numpy as np

from minicache_cpp.evaluate.losses import Losses
from minicache_cpp.evaluate.table import SIZES_AND_LOSSES, labels_of, legend, table

SLERP = "slerp:start=0.5,t=0.6,retain=0.05,type=f16"
LONG_PLAN = "/some/where/far/away/5.plan.gguf"
BUCKETS = ["0-256", *(f"{256 << n}-{512 << n}" for n in range(7))]


def losses(factor: float) -> dict[str, object]:
    """The keys of a row with numbers as wide as they come, in a context of 32768 tokens."""
    row: dict[str, object] = dict.fromkeys(
        ("kl_mean", "kl_median", "kl_p99", "kl_p999", "kl_max", "kl_excess", "kl_floor"), 0.00123 * factor
    )
    row |= dict.fromkeys(("kl_mean_stderr", "kl_excess_stderr", "ppl_stderr", "ppl_ratio_stderr"), 0.0001)
    buckets = {one: {"kl_mean": 0.00345 * factor, "tokens": 5} for one in BUCKETS}
    return row | {"ppl": 123.456, "ppl_ratio": 1.2345, "top1": 0.987, "kl_by_position": buckets}


def test_long_names_are_numbered_and_listed() -> None:
    labels = labels_of(["f16", SLERP, "q8_0", LONG_PLAN, SLERP.replace("f16", "q4_0"), "5.plan.gguf"])
    assert list(labels.values()) == ["f16", "slerp #1", "q8_0", "plan #1", "slerp #2", "5.plan.gguf"]
    assert legend(labels)[:2] == [f"slerp #1: {SLERP}", f"plan #1: {LONG_PLAN}"]
    assert len(legend(labels)) == 3


def test_tables_of_large_contexts_have_120_columns_at_most() -> None:
    sizes = {"bytes": 3 << 30, "ratio": 12.34, "total_ratio": 12.34, "bits_per_value": 16.0}
    rows = [
        {"name": name, **sizes, **losses(-1), "note": ""}
        for name in ("f16", SLERP, "iq4_nl", "abcdefgh-ijkl.plan.gguf")
    ]
    run = {
        "model": "m.gguf",
        "context": 32768,
        "tokens": 32768,
        "score": "all",
        "pos_offset": 100000,
        "ubatch": 1,
        "threads": 1,
        "text": ["t.txt"],
        "floor": losses(1),
        "rows": rows,
    }
    lines = table([run, run]).splitlines()
    assert max(map(len, lines)) <= 120
    heads = [line for line in lines if line.startswith("cache")]
    assert heads[2].split()[3:] == ["256", "512", "1024", "2048", "4096", "8192", "16384", "32768"]
    # the spread and the buckets begin with the floor of each run
    assert sum(line.startswith("floor ") for line in lines) == 4
    # every table has a row for each run
    assert sum(line.startswith("slerp #1 ") for line in lines) == 6


def test_a_cache_that_computes_the_same_has_no_excess() -> None:
    same = {key: 0.0 if key.startswith("kl_m") else value for key, value in losses(1).items()}
    assert same["kl_max"] == 0
    assert SIZES_AND_LOSSES["excess"](same) == "-"
    assert SIZES_AND_LOSSES["excess"](losses(1)) == "0.00123"


def test_losses_have_all_keys_that_tables_show() -> None:
    found = Losses()
    rows = np.log(np.array([[0.5, 0.5]], np.float32))
    found.add(rows, rows, [0], 0)
    assert set(losses(1)) <= set(found.summary(found))

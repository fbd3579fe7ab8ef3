"""scripts/speed_goals.py: which goals a set of measurements reaches."""

from __future__ import annotations

from typing import Any

import speed_goals
from support.measurements import result


def test_goals_say_what_is_reached() -> None:
    def case(kind: str, tokens: int, n_kv: int = 16384, **us: float) -> dict[str, Any]:
        name = f"type={kind},n_kv={n_kv},d=128,n_head_kv=8,n_gqa=4,n_stream=1,n_tps={tokens}"
        results = [result(one.replace("_q", " q"), value) for one, value in us.items()]
        return {"op": "ATTN", "case": name, "threads": 2, "memory_read_gbps": 20.0, "results": results}

    codes = "code-1.2.2.2.1.1.5-0.0.1.1.1.1.2"
    attention = [
        case("f16", 1, ours=5e3, upstream=17e3),
        case("q4_0", 1, ours=4e3, upstream=50e3),
        case(codes, 1, ours=5e3, ours_q4_0=4e3, upstream_q4_0=50e3),
        case("f16", 512, ours=1.5e6, upstream=3.8e6),
        case("q4_0", 512, ours=2e6, upstream=24e6),
        case("q4_0", 1, 512, ours=100, upstream=90),
    ]
    speed = {"n_kv": 16384, "minicache": None}
    rows = [speed | {"cache": "f16", "decode_tps": 10.0}, speed | {"cache": "q4_0", "decode_tps": 5.0}]
    rows.append({"n_kv": 16384, "cache": "f16", "minicache": "5.gguf", "decode_tps": 14.0})
    ops = {
        "model": "/somewhere/tiny.gguf",
        "rows": [
            {"n_kv": n, "phase": "decode", "cache": "f16", "minicache": "5.gguf", "keeping": keeping}
            for n, keeping in ((64, 0.019), (512, 0.018))
        ],
    }
    parts = {"attention": {"rows": attention}, "model": {"rows": rows}, "demo": {"rows": rows}, "ops": [ops]}
    found = speed_goals.goals_table(parts, {"5.gguf": "code 5"}).splitlines()[2:]
    assert found == [
        "| decode at 16384, GQA 4, q4_0 over upstream | ≥ 10.00 | 12.50 | yes |",
        "| decode at 16384, GQA 4, f16 over upstream | ≥ 3.50 | 3.40 | **no** |",
        "| decode at 16384, GQA 4, q4_0 over f16, both ours | ≥ 0.95 | 1.25 | yes |",
        "| decode at 16384, GQA 4, code 3/1 over ours of q4_0 | ≥ 0.95 | 0.80 | **no** |",
        "| prefill at 16384, slowest type, over upstream's q4_0 | ≥ 10.00 | 12.00 | yes |",
        "| prefill at 16384, slowest type, over upstream's f16 | ≥ 2.00 | 1.90 | **no** |",
        "| at 512, the least of all cases over upstream | ≥ 0.95 | 0.90 | **no** |",
        "| model, decode at 16384, code 5 over upstream q4_0 | ≥ 3.00 | 2.80 | **no** |",
        "| model, decode at 16384, code 5 over upstream f16 | ≥ 1.50 | 1.40 | **no** |",
        "| demo model, decode, code 5 over upstream f16, at its worst | ≥ 0.95 | 1.40 | yes |",
        "| tiny, merge, encode, pool and index in decode, code 5, at their most | ≤ 2.0% | 1.9% | yes |",
    ]

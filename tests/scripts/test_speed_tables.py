"""scripts/speed_tables.py: the tables that are made from measurements."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import speed_tables
from support.measurements import result
from support.paths import required

PERF = {
    "rows": [
        {
            "op": "ATTN",
            "case": "type=q4_0,n_kv=512,d=64,n_head_kv=8,n_gqa=4,n_stream=1,n_tps=1",
            "threads": 2,
            "memory_read_gbps": 20.0,
            "results": [result("ours", 2000), result("upstream", 9000)],
        },
        {
            "op": "ATTN_CODE",
            "case": "type=code-1.0.1.1.1.1.2-0.0.0.1.1.0.1,n_kv=512,d=64,n_head_kv=8,n_gqa=4,n_stream=1,n_tps=1",
            "threads": 2,
            "memory_read_gbps": 20.0,
            "results": [result("ours", 3000), result("ours q4_0", 2000), result("upstream q4_0", 9000)],
        },
        {"op": "MERGE", "case": "n=1", "threads": 2, "memory_read_gbps": 20.0, "results": []},
    ]
}


def test_attention_tables() -> None:
    cases = speed_tables.cases_of(PERF)
    assert [case.type for case in cases] == ["q4_0", "code 3/1"]
    text = speed_tables.attention_tables(cases)
    assert "**One token of one sequence, 2 threads; memory read 20.0 GB/s**" in text
    assert "| 64 | 4 | 1 | 1 | 512 | 2.00 ± 0.10, 4.5x, 25% | 3.00 ± 0.10, 3.0x, 1.50 q4_0 |" in text
    assert "Prefill" not in text


def test_model_table_compares_with_both_plain_caches() -> None:
    def row(cache: str, minicache: str | None, tps: float) -> dict[str, Any]:
        speeds = {"prefill_tps": 10 * tps, "prefill_iqr": None, "decode_tps": tps, "decode_iqr": 2.0}
        return {"cache": cache, "minicache": minicache, "n_kv": 64, "kv_bytes": 1 << 20, **speeds}

    found = {"rows": [row("f16", None, 20.0), row("q4_0", None, 10.0), row("f16", "5.gguf", 40.0)]}
    text = speed_tables.model_table(found, {"5.gguf": "code 5"})
    assert "| code 5 | 64 | 1.0 | 400 | 4.00 | 2.00 | 40.0 ± 1.0 | 4.00 | 2.00 |" in text


def test_the_native_matrix_has_a_table() -> None:
    program = required("MINICACHE_NATIVE_TEST", "minicache-test, built with -DMINICACHE_TESTS=ON")
    limits = ["--kv", "128", "--type", "f16,code2", "--threads", "1", "--seconds", "0.001", "--rounds", "1"]
    command = [program, "perf", "--matrix", "--json", *limits]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    cases = speed_tables.cases_of(json.loads(done.stdout))
    places = {(case.head_size, case.n_gqa, case.batch, case.tokens) for case in cases if case.type == "f16"}
    assert places == {(d, n, 1, 1) for d in (64, 128) for n in (1, 4, 8)} | {(128, 4, 4, 1), (128, 4, 16, 1)}
    assert {case.type for case in cases} == {"f16", "code 2/2"}

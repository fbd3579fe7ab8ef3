"""The scripts that measure speed unattended, at sizes at which the figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bench_speed
import bench_throughput
import random_model
import random_plan
import speed_goals
import speed_tables
from minicache_cpp import CacheSpec, MiniCacheError
from minicache_cpp.cache.context_report import read_report
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.cache.size import kv_bytes, n_sequences
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.modelfile.shape import model_shape
from minicache_cpp.reading.model import NativeModel
from support.paths import required


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "tiny.gguf"
    assert random_model.main(["tiny", "--layers", "4", "--vocab", "96", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def plans(model: Path) -> dict[str, Path]:
    found = {}
    for name, options in (
        ("5", ["--ratio", "5"]),
        ("8", ["--ratio", "8"]),
        ("plain", ["--plain", "q4_0"]),
        ("four", ["--ratio", "5", "--group", "4"]),
    ):
        found[name] = model.with_name(f"{name}.plan.gguf")
        assert random_plan.main([str(model), *options, "-o", str(found[name])]) == 0
    return found


def test_a_small_vocabulary_is_written(model: Path) -> None:
    file = read_gguf(model)
    assert file.tensors["output.weight"].dims[:2] == (256, 96)
    with pytest.raises(SystemExit):
        random_model.main(["tiny", "--vocab", "1000", "-o", "none.gguf"])


@pytest.mark.parametrize("ratio", [5, 8])
def test_random_plans_have_the_ratio(model: Path, plans: dict[str, Path], ratio: int) -> None:
    plan = PlanFile.open(plans[str(ratio)]).plan
    assert [group.layers for group in plan.groups] == [(0, 1), (2, 3)]
    for group in plan.groups:
        f16 = 2 * 2 * (group.d_k + group.d_v) * group.n_head_kv
        assert ratio <= f16 / group.token_bytes < 1.15 * ratio
        assert group.layout_k.bits > group.layout_v.bits
    assert plan.window == random_plan.WINDOW


def test_random_plans_run(model: Path, plans: dict[str, Path]) -> None:
    from minicache_cpp.bench.speed import measure

    specs = [CacheSpec.parse(str(path)) for path in plans.values()]
    rows = measure(read_gguf(model), [600], specs, 1, 1, copies=True)["rows"]
    assert rows[0]["kv_bytes"] > rows[1]["kv_bytes"]
    assert [row["cache"] for row in rows] == ["f16", "f16", "q4_0", "f16"]
    assert [group.layers for group in PlanFile.open(plans["four"]).plan.groups] == [(0, 1, 2, 3)]
    assert not PlanFile.open(plans["plain"]).plan.groups


@pytest.mark.parametrize("spec", ["f16", "slerp:type=q4_0", "5", "plain"])
def test_sequences_fill_the_budget(model: Path, plans: dict[str, Path], spec: str) -> None:
    cache = CacheSpec.parse(str(plans.get(spec, spec)))
    shape = model_shape(read_gguf(model))
    budget = 3 << 20
    with NativeModel(model) as loaded:
        service = bench_throughput.Service(loaded, model, cache, budget, 256, 1)
        try:
            n, found = service.sequences, read_report(service.ctx).bytes
        finally:
            service.close()
    assert n == n_sequences(shape, cache, 256, budget)
    told = kv_bytes(shape, cache, 256, n)
    assert found <= told <= budget
    assert told - found < 256 * n  # each stream is rounded up, where the cache rounds them together
    assert kv_bytes(shape, cache, 256, n + 1) > budget
    assert n_sequences(shape, cache, 256, 1000) == 0


def test_full_sequences_decode(model: Path, plans: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    arguments = [
        str(model),
        "--device",
        "cpu",
        "--full",
        "--cells",
        "256",
        "--budget",
        "3M",
        "--threads",
        "1",
    ]
    arguments += ["--steps", "2", "--json", str(path), "--config", "f16", "--config", str(plans["5"])]
    assert bench_throughput.main(arguments) == 0
    found = json.loads(path.read_text())
    assert (found["cells"], found["full"], found["threads"]) == (256, True, 1)
    few, many = found["rows"]
    assert many["sequences"] > 2 * few["sequences"]
    assert all(row["tps"] > 0 and row["tokens"] == row["sequences"] for row in found["rows"])
    for wrong in (["--steps", "33"], ["--cells", "63"], ["--budget", "1000"]):
        with pytest.raises(MiniCacheError):
            bench_throughput.main([*arguments, *wrong])


def result(name: str, us: float, gbps: float = 5.0) -> dict[str, Any]:
    return {"name": name, "median_us": us, "q1_us": us - 100, "q3_us": us + 100, "gbps": gbps}


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


def test_model_table_compares_with_both_plain_caches() -> None:
    def row(cache: str, minicache: str | None, tps: float) -> dict[str, Any]:
        speeds = {"prefill_tps": 10 * tps, "prefill_iqr": None, "decode_tps": tps, "decode_iqr": 2.0}
        return {"cache": cache, "minicache": minicache, "n_kv": 64, "kv_bytes": 1 << 20, **speeds}

    found = {"rows": [row("f16", None, 20.0), row("q4_0", None, 10.0), row("f16", "5.gguf", 40.0)]}
    text = speed_tables.model_table(found, {"5.gguf": "code 5"})
    assert "| code 5 | 64 | 1.0 | 400 | 4.00 | 2.00 | 40.0 ± 1.0 | 4.00 | 2.00 |" in text


def test_parts_that_fail_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(run: bench_speed.Run) -> tuple[Any, str]:
        run.call([sys.executable, "-c", "import sys; sys.exit('there is none')"])
        raise AssertionError

    monkeypatch.setattr(bench_speed, "PARTS", {"broken": fails, "fine": lambda _: (7, "| a table |")})
    assert bench_speed.main([str(tmp_path), "--bin", str(library_dir), "--threads", "1"]) == 1
    text = (tmp_path / "speed.md").read_text()
    assert capsys.readouterr().out == text
    assert "not measured" in text and "there is none" in text and "| a table |" in text
    parts = json.loads((tmp_path / "speed.json").read_text())["parts"]
    assert (parts["fine"]["found"], len(parts["broken"]["commands"])) == (7, 1)
    # one part anew, and the report has the others as they were
    bench_speed.PARTS["broken"] = lambda _: (8, "| mended |")
    again = [str(tmp_path), "--bin", str(library_dir), "--threads", "1", "--only", "broken"]
    assert bench_speed.main(again) == 0
    text = (tmp_path / "speed.md").read_text()
    assert "| mended |" in text and "| a table |" in text and "not measured" not in text


def test_all_of_it_runs(tmp_path: Path, library_dir: Path) -> None:
    arguments = [str(tmp_path), "--bin", str(library_dir), "--threads", "1", "--quick"]
    assert bench_speed.main([*arguments, "--only", "model", "--only", "throughput"]) == 0
    text = (tmp_path / "speed.md").read_text()
    assert "minicache_cpp bench tiny.gguf" in text and str(tmp_path) not in text
    for name in ("q4_0, plain layers of ours", "code 5", "code 8", "slerp q4_0"):
        assert text.count(name) >= 2  # at each length
    assert "| bench_throughput.py | code 5 | 256 |" in text


def test_upstreams_bench_is_the_second_witness(tools_dir: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--bin", str(tools_dir), "--threads", "1", "--quick", "--only", "batched"]
    assert bench_speed.main(arguments) == 0
    text = (tmp_path / "speed.md").read_text()
    assert "LLAMA_MINICACHE=plan=tiny-code-5.plan.gguf llama-batched-bench" in text
    assert "| llama-batched-bench | code 5 | 256 |" in text


def test_the_native_matrix_has_a_table() -> None:
    program = required("MINICACHE_NATIVE_TEST", "minicache-test, built with -DMINICACHE_TESTS=ON")
    limits = ["--kv", "128", "--type", "f16,code2", "--threads", "1", "--seconds", "0.001", "--rounds", "1"]
    command = [program, "perf", "--matrix", "--json", *limits]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    cases = speed_tables.cases_of(json.loads(done.stdout))
    places = {(case.head_size, case.n_gqa, case.batch, case.tokens) for case in cases if case.type == "f16"}
    assert places == {(d, n, 1, 1) for d in (64, 128) for n in (1, 4, 8)} | {(128, 4, 4, 1), (128, 4, 16, 1)}
    assert {case.type for case in cases} == {"f16", "code 2/2"}

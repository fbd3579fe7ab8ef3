"""What calibration chooses for a model's layers."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from minicache_cpp import CacheSpec, Llama, MiniCacheError, MiniCacheWarning
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.cache.size import kv_bytes
from minicache_cpp.calibrate import calibration, code_fit, command
from minicache_cpp.calibrate.calibration import calibrate, calibrate_model
from minicache_cpp.calibrate.capture import NotObservedError
from minicache_cpp.calibrate.grouping import GROUPINGS
from minicache_cpp.calibrate.options import Options
from minicache_cpp.calibrate.table import table
from minicache_cpp.host.progress import Progress
from minicache_cpp.modelfile.ggml_types import GGML_TYPES
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from minicache_cpp.text import bundled
from support import tiny_models
from support.calibrations import made
from support.family_models import FAMILIES


def test_bits_go_where_the_model_looks(text: Path, tmp_path: Path) -> None:
    """What layers 2 and 3 attend to does not reach the output."""
    tiny = tiny_models.random_model(n_layer=4)
    for layer in (2, 3):
        tiny.weights[f"blk.{layer}.attn_output.weight"][:] = 0
    found = made(tiny.write(tmp_path / "blind.gguf"), text, tmp_path / "plan.gguf", ratio=4.0)
    seen, unseen = found["choices"]
    assert seen["bits_k"] + seen["bits_v"] > unseen["bits_k"] + unseen["bits_v"] + 2
    assert min(seen["bits_k"], seen["bits_v"]) > 3.5  # the mean of all is 3.86
    assert max(unseen["sensitivity_k"]) < min(seen["sensitivity_k"])


def test_of_two_layers_the_one_that_counts_is_coded_better(text: Path, tmp_path: Path) -> None:
    """Layers 0 and 1 share a code, and what layer 1 attends to does not reach the output."""
    tiny = tiny_models.random_model(n_layer=2)
    tiny.weights["blk.1.attn_output.weight"][:] = 0
    found = made(tiny.write(tmp_path / "blind.gguf"), text, tmp_path / "plan.gguf", ratio=6.0)
    (row,) = found["choices"]
    for kind in ("k", "v"):
        first, second = row[f"layer_error_{kind}"]
        assert first < second / 4


def test_where_codes_are_bad_the_plan_is_plain(
    models: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken fit loses more than plain types, so plain types are chosen."""
    monkeypatch.setattr(code_fit, "GAUSSIAN_STEPS", dict.fromkeys(range(1, 9), 4.0))
    monkeypatch.setattr(code_fit, "_tried_steps", code_fit._tried_steps.__wrapped__)  # which would remember
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=1.88)
    assert not PlanFile.open(found["plan"]).plan.groups
    assert {row["kind"] for row in found["choices"]} <= {"plain"}
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["ratio"] >= 1.88
    assert found["kl_measured"] <= 2 * rows["q8_0"]["kl"]
    assert "plain" in found["why"]


def test_types_by_layer_go_where_the_model_looks(text: Path, tmp_path: Path) -> None:
    """Without codes; what layer 1 attends to does not reach the output."""
    tiny = tiny_models.random_model(n_layer=3)
    tiny.weights["blk.1.attn_output.weight"][:] = 0
    path = tiny.write(tmp_path / "blind.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minicache_cpp.calibrate.planner.Planner.coded", lambda *_: None)
        found = made(path, text, tmp_path / "plan.gguf", ratio=2.2)
    plan = PlanFile.open(found["plan"]).plan
    assert not plan.groups
    assert [row["layers"] for row in found["choices"]] == [[0, 1], [2]]
    row_bytes = [
        sum(GGML_TYPES[name].row_bytes(32) for name in types) for types in plan.plain_types().values()
    ]
    assert row_bytes[1] == 2 * 18
    assert min(row_bytes[0], row_bytes[2]) > 2 * 18
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plan"]["ratio"] >= 2.2
    assert rows["plan"]["kl"] < rows["q4_0"]["kl"]
    printed = table(found)
    assert all(words in printed for words in ("\n0+1  ", "\n2  ", "plain ", "types by layer"))
    with Llama(str(path), n_ctx=512, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
    assert [(one.type_k, one.type_v) for one in report.layers] == list(plan.plain_types().values())


def test_an_odd_layer_has_a_code_of_its_own(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(models["odd"], text, tmp_path / "plan.gguf", ratio=6.0)
    plan = PlanFile.open(found["plan"]).plan
    assert [group.layers for group in plan.groups] == [(0, 1), (2,)]
    row = found["choices"][-1]
    assert (row["layers"], row["kind"]) == ([2], "code")
    layouts = plan.groups[1].layouts_k
    assert row["bits_k"] == sum(one.bits for one in layouts) / (len(layouts) * plan.groups[1].d_k)
    assert row["units_k"] == [list(one.units) for one in layouts]
    assert min(row["sensitivity_k"] + row["sensitivity_v"]) > 0
    with Llama(str(models["odd"]), n_ctx=4096, minicache=found["plan"], verbose=False) as llm:
        assert 6.0 <= llm.kv_report().ratio < 6.3


@pytest.mark.parametrize(("time", "groups"), [(0.0, [(0, 1, 2, 3)]), (100.0, [(0,), (1,), (2,), (3,)])])
def test_the_price_of_time_decides_how_layers_are_grouped(
    models: dict[str, Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    time: float,
    groups: list[tuple[int, ...]],
) -> None:
    monkeypatch.setitem(GROUPINGS, "auto", replace(GROUPINGS["auto"], time=time))
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=8.0, group="auto")
    assert [one.layers for one in PlanFile.open(found["plan"]).plan.groups] == groups


def test_four_layers_share_a_code(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", ratio=8.0, group="4")
    groups = [one.layers for one in PlanFile.open(found["plan"]).plan.groups]
    assert groups == [(0, 1, 2, 3)]
    assert [tuple(row["layers"]) for row in found["choices"]] == groups
    assert len(found["choices"][0]["sensitivity_k"]) == len(groups[0])
    assert "+".join(map(str, groups[0])) in table(found)
    with Llama(str(models["plain"]), n_ctx=4096, minicache=found["plan"], verbose=False) as llm:
        assert 8.0 <= llm.kv_report().ratio < 8.5  # the units are large for a small model


@pytest.mark.parametrize(
    ("given", "group"), [([], "2"), (["--fast"], "fast"), (["--small"], "4"), (["--group", "auto"], "auto")]
)
def test_speed_and_size_choose_the_groups(given: list[str], group: str) -> None:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    assert command.options_of(parser.parse_args(["model.gguf", *given])).group == group


def test_each_layer_has_a_code_of_its_own(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(models["plain"], text, tmp_path / "plan.gguf", group="1")
    assert [one.layers for one in PlanFile.open(found["plan"]).plan.groups] == [(0,), (1,), (2,), (3,)]


def test_a_model_without_rope_has_no_blocks(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    found = made(models["alibi"], text, tmp_path / "plan.gguf")
    assert found["rope_block"] == 0
    assert found["choices"]
    with Llama(str(models["alibi"]), n_ctx=1024, minicache=found["plan"], verbose=False) as llm:
        assert llm.kv_report().mode == "code"


def test_a_model_whose_layers_cannot_be_coded_gets_a_plain_cache(
    models: dict[str, Path],
    text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unseen(*_: object) -> None:
        raise NotObservedError("the K of layer 0 cannot be observed in this model")

    monkeypatch.setattr(calibration, "capture", unseen)
    options = Options(ratio=3.0, tokens=1024, threads=1, texts=(text,))
    found = calibrate(models["plain"], options, tmp_path / "plan.gguf", Progress("calibrate"))
    assert found["choices"] == []
    assert "gets a plain cache" in capsys.readouterr().err
    with Llama(str(models["plain"]), n_ctx=512, minicache=found["plan"], verbose=False) as llm:
        assert llm.kv_report().type_k == found["plain"]["type_k"]


@pytest.mark.parametrize("name", ["gemma2", "gemma4", "gpt-oss", "qwen35", "qwen2vl"])
def test_what_grows_of_a_model_is_coded(text: Path, tmp_path: Path, name: str) -> None:
    """Windows are kept as q8_0, whatever the codes beside them; layers in between do not keep neighbours apart."""
    family = FAMILIES[name]
    path = family.write(tmp_path / "model.gguf")
    found = made(path, text, tmp_path / "plan.gguf", ratio=3.0)
    coded = [layer for row in found["choices"] if row["kind"] == "code" for layer in row["layers"]]
    assert set(coded) <= set(family.grows)
    with Llama(str(path), n_ctx=1024, minicache=found["plan"], verbose=False) as llm:
        report = llm.kv_report()
        assert report.active
        assert report.ratio >= 3.0
        assert {layer.type_k for layer in report.layers if layer.kind == "window"} <= {"q8_0"}
        assert report.bytes == kv_bytes(model_shape(read_gguf(path)), llm.cache_spec, 1024)


@pytest.mark.parametrize("head_size", [16, 20, 40, 80])
def test_heads_that_no_block_divides_are_coded(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head_size: int
) -> None:
    """Their window is f16, as q8_0 has blocks of 32; "auto" makes their plan like any other."""
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(bundled, "calibration_files", lambda: [text])
    path = tiny_models.random_model(n_layer=3, head_size=head_size).write(tmp_path / "model.gguf")
    with pytest.warns(MiniCacheWarning, match="one is made now"):
        llm = Llama(str(path), n_ctx=512, minicache="auto", calibrate="once", verbose=False)
    with llm:
        llm.eval(tiny_models.prompt(100))
        report = llm.kv_report()
    assert report.mode == "code"
    assert report.pool_type == "f16"
    assert report.ratio >= 5.0


@pytest.mark.filterwarnings("ignore:the layers merged here")
@pytest.mark.parametrize("pool", ["", ",pool=q8_0", ",pool=f16"])
def test_heads_that_no_block_divides_are_merged(tmp_path: Path, pool: str) -> None:
    path = tiny_models.random_model(n_layer=4, head_size=40).write(tmp_path / "model.gguf")
    spec = CacheSpec.parse(f"slerp:start=0,window=8{pool}")
    with Llama(str(path), n_ctx=512, minicache=spec, verbose=False) as llm:
        llm.eval(tiny_models.prompt(60))
        report = llm.kv_report()
    assert report.pool_type == "f16"
    assert report.bytes == kv_bytes(model_shape(read_gguf(path)), spec, 512)


def test_fast_plans_read_fewer_units(models: dict[str, Path], text: Path, tmp_path: Path) -> None:
    """In the same bytes, attention has fewer units of coefficients to read than with pairs."""
    read = {}
    for group in ("2", "fast"):
        found = made(models["plain"], text, tmp_path / f"{group}.plan.gguf", ratio=8.0, group=group)
        plan = PlanFile.open(found["plan"]).plan
        assert {layer for one in plan.groups for layer in one.layers} == {0, 1, 2, 3}
        units = [sum(layout.units) for one in plan.groups for layout in (*one.layouts_k, *one.layouts_v)]
        sizes = [len(one.layers) for one in plan.groups for _ in (*one.layouts_k, *one.layouts_v)]
        read[group] = sum(n * size for n, size in zip(units, sizes, strict=True))
    assert read["fast"] < 0.9 * read["2"]


def test_a_group_that_does_not_exist_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MiniCacheError, match="group='3': it must be one of 1, 2, 4, auto, fast"):
        calibrate_model(models["plain"], tmp_path / "plan.gguf", group="3")

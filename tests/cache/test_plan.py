"""Plan files are read as they were written, refused if damaged or for another model, and sized as a context is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from minicache_cpp import CacheSpec, Llama, MiniCache, MiniCacheError
from minicache_cpp.cache.code_format import GroupFormat, Layout
from minicache_cpp.cache.plan import Plan
from minicache_cpp.cache.plan_file import PlanFile, write_plan
from minicache_cpp.cache.plan_store import find_plan, plan_path
from minicache_cpp.cache.size import kv_bytes, plan_fixed_bytes, plan_window_bytes
from minicache_cpp.cli import main
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile import gguf_file
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native import binding
from minicache_cpp.native.model_shape import model_shape
from support import tiny_models
from support.disks import LIMITS, files_of_at_most
from support.family_table import add_value

# of as many KV heads as a model has
LAYOUTS_K = (Layout((1, 0, 0, 1, 0, 1, 0)), Layout((0, 1, 0, 1, 0, 0, 0)), Layout())
LAYOUTS_V = (Layout((0, 0, 1, 0, 1, 0, 1)), Layout(), Layout((0, 0, 1, 0, 1, 0, 1)))
SMALL = {"n_ctx": 700, "n_threads": 1, "verbose": False}


def group_format(model: Path, *layers: int) -> GroupFormat:
    layer = model_shape(read_gguf(model)).layers[layers[0]]
    n = layer.n_head_kv
    return GroupFormat(layers, n, layer.head_size_k, layer.head_size_v, LAYOUTS_K[:n], LAYOUTS_V[:n])


def codec_of(group: GroupFormat, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """A codec of the right size whose numbers are harmless and useless."""
    rng = np.random.default_rng(seed)
    size_k, size_v = (sum(one.size for one in layouts) for layouts in (group.layouts_k, group.layouts_v))
    n_half = group.n_layer * (group.d_k * size_k + group.d_v * size_v)
    n_float = (group.file_codec_bytes - 2 * n_half) // 4
    floats = np.full(n_float, 0.05, np.float32)
    halves = (rng.standard_normal(n_half) * 0.1).astype(np.float16)
    return np.frombuffer(floats.tobytes() + halves.tobytes(), np.int8)


def make(model: Path, path: Path, **more: object) -> Path:
    """Writes a plan for layers 0 and 1 and layers 4 and 5 of a model."""
    file = read_gguf(model)
    groups = (group_format(model, 0, 1), group_format(model, 4, 5))
    plan = Plan(fingerprint(file), len(model_shape(file).layers), 128, "q8_0", "q8_0", groups=groups, model="tiny",
                tool="a test", notes={"why": "for a test"})  # fmt: skip
    plan = replace(plan, **more)  # type: ignore[arg-type]
    write_plan(path, plan, {group.first: codec_of(group) for group in plan.groups})
    return path


def test_a_plan_is_read_as_it_was_written(model_kinds: dict[str, Path], tmp_path: Path) -> None:
    path = make(
        model_kinds["neighbours"], tmp_path / "plan.gguf", retain=1 / 128, pool_type="q8_0", window=64
    )
    plan = PlanFile.open(path).plan
    assert plan.fingerprint == fingerprint(read_gguf(model_kinds["neighbours"]))
    assert plan.groups == (
        group_format(model_kinds["neighbours"], 0, 1),
        group_format(model_kinds["neighbours"], 4, 5),
    )
    assert (plan.n_layer, plan.rope_block, plan.type_k, plan.type_v) == (6, 128, "q8_0", "q8_0")
    assert (plan.retain, plan.pool_type, plan.window) == (1 / 128, "q8_0", 64)
    assert (plan.model, plan.tool, plan.text, plan.notes) == ("tiny", "a test", "", {"why": "for a test"})
    again = make(
        model_kinds["neighbours"], tmp_path / "again.gguf", retain=1 / 128, pool_type="q8_0", window=64
    )
    assert path.read_bytes() == again.read_bytes()
    assert [one.name for one in tmp_path.iterdir() if one.suffix != ".gguf"] == []


@LIMITS
def test_a_plan_that_finds_no_room_leaves_the_old_one(model: Path, tmp_path: Path) -> None:
    """Also where only its last bytes find none, which NumPy's own way to write them does not notice."""
    path = make(model, tmp_path / "plan.gguf")
    old, size = path.read_bytes(), path.stat().st_size
    for room in (100, size // 2, size - 1):
        with files_of_at_most(room), pytest.raises(MiniCacheError, match="cannot be written: File too large"):
            make(model, path, window=64)
        assert path.read_bytes() == old
        assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["neighbours", "halves", "alibi", "odd"])
@pytest.mark.parametrize(
    ("retain", "window", "pool"),
    [(0.0, 0, "q8_0"), (1 / 128, 0, "q8_0"), (0.0, 64, "f16"), (0.0, 7, "q8_0"), (1 / 128, 33, "q8_0")],
)
def test_the_bytes_are_those_of_a_real_context(
    model_kinds: dict[str, Path], tmp_path: Path, name: str, retain: float, window: int, pool: str
) -> None:
    path = make(model_kinds[name], tmp_path / "plan.gguf", retain=retain, pool_type=pool, window=window)
    settings = MiniCache(plan=path)
    assert settings.groups == settings.pairs == ((0, 1), (4, 5))
    with Llama(str(model_kinds[name]), minicache=settings, **SMALL) as llm:
        report = llm.kv_report()
    assert report.mode == "code"
    assert report.pairs == [(0, 1), (4, 5)]
    shape = model_shape(read_gguf(model_kinds[name]))
    assert kv_bytes(shape, CacheSpec.of(settings), 700) == report.bytes
    plan = PlanFile.open(path).plan
    assert report.bytes_codec == sum(
        group.codec_bytes(shape.layers[group.first].n_rot) for group in plan.groups
    )
    # 700 tokens are 768 cells, of which a 32nd is more than 7
    window = max(window, 12 if pool == "f16" else 24) if window else 0
    assert (report.window, report.bytes_window) == (window, plan_window_bytes(shape, plan, window))
    padding = report.bytes - sum((report.bytes_directions, report.bytes_magnitudes, report.bytes_pool,
                                  report.bytes_window, report.bytes_index, report.bytes_codec,
                                  report.bytes_unmerged))  # fmt: skip
    assert report.fixed_bytes == report.bytes_codec + report.bytes_window + padding
    assert abs(report.fixed_bytes - plan_fixed_bytes(shape, plan, 700)) <= 32 * 20  # alignment
    assert report.ratio == pytest.approx(report.bytes_f16 / (report.bytes - report.fixed_bytes))
    assert report.total_ratio < report.ratio
    assert (report.type_k, report.type_v, report.retain) == ("q8_0", "q8_0", pytest.approx(retain))
    assert report.rope_block == 128 or name == "alibi"
    assert ("window" in str(report)) == bool(window)
    for words in ("codes", "codecs", "merged layers 0+1, 4+5"):
        assert words in str(report)


@pytest.mark.parametrize(
    ("pool", "n_ctx", "window"),
    [
        ("q8_0", 2048, 64),
        ("q8_0", 2100, 72),
        ("q8_0", 32768, 1024),
        ("q8_0", 50_000, 1024),
        ("f16", 4096, 64),
        ("f16", 8192, 128),
    ],
)
def test_the_window_of_a_long_context_is_counted(
    model_kinds: dict[str, Path], tmp_path: Path, pool: str, n_ctx: int, window: int
) -> None:
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf", window=64, pool_type=pool)
    settings = MiniCache(plan=path)
    with Llama(str(model_kinds["neighbours"]), minicache=settings, **{**SMALL, "n_ctx": n_ctx}) as llm:
        report = llm.kv_report()
    assert report.window == window
    assert (
        kv_bytes(model_shape(read_gguf(model_kinds["neighbours"])), CacheSpec.of(settings), n_ctx)
        == report.bytes
    )


def test_inspect_shows_the_plan_of_the_model(model_kinds: dict[str, Path]) -> None:
    file = read_gguf(model_kinds["halves"])
    assert find_plan(file) is None
    path = make(model_kinds["halves"], plan_path(file))
    try:
        found = find_plan(file)
        assert found is not None
        assert found.path == path
        rows = inspect_model(model_kinds["halves"], 4096)["rows"]
        assert rows[-1]["name"] == str(path)
        assert rows[-1]["groups"] == 2
        path.write_bytes(path.read_bytes()[:-100])
        assert find_plan(file) is None  # a damaged plan counts as none
    finally:
        path.unlink()


@pytest.mark.parametrize("how", ["MiniCache", "path", "Path"])
def test_a_plan_is_used_by_any_name(model_kinds: dict[str, Path], tmp_path: Path, how: str) -> None:
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf")
    given = {"MiniCache": MiniCache(plan=str(path)), "path": str(path), "Path": path}[how]
    with Llama(str(model_kinds["neighbours"]), minicache=given, **SMALL) as llm:
        assert llm.kv_report().mode == "code"
        assert llm.minicache == MiniCache(plan=str(path))


def test_a_plan_decides_everything(model_kinds: dict[str, Path], tmp_path: Path) -> None:
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf")
    settings = MiniCache(plan=path, strict=True)
    assert replace(settings, strict=False) == MiniCache(plan=path)
    assert CacheSpec.parse(str(path)) == CacheSpec("q8_0", "q8_0", MiniCache(plan=path))
    assert CacheSpec.parse(settings.spec()).minicache == settings
    assert settings.window == 0
    for more in (
        {"window": 8},
        {"start": 0.1},
        {"t": 0.5},
        {"retain": 0.3},
        {"type_k": "q4_0"},
        {"pairs": [(0, 1)]},
    ):
        with pytest.raises(MiniCacheError, match=f"{next(iter(more))}.*decides it"):
            MiniCache(plan=path, **more)  # type: ignore[arg-type]


def test_a_plan_decides_the_window(model_kinds: dict[str, Path], tmp_path: Path) -> None:
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf", window=40)
    assert MiniCache(plan=path).window == 40
    assert MiniCache(plan=path, window=40) == MiniCache(plan=path)
    with Llama(str(model_kinds["neighbours"]), minicache=path, **SMALL) as llm:
        assert llm.kv_report().window == 40
    # a plan that was made before there were windows
    rewritten(path, lambda keys: keys.pop("minicache.window") and None)
    assert PlanFile.open(path).plan.window == 0
    with Llama(str(model_kinds["neighbours"]), minicache=path, **SMALL) as llm:
        assert llm.kv_report().window == 0


def test_a_plan_without_groups_is_a_plain_cache(model_kinds: dict[str, Path], tmp_path: Path) -> None:
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf", groups=(), type_k="q4_0", type_v="q4_0")
    with Llama(str(model_kinds["neighbours"]), minicache=MiniCache(plan=path), **SMALL) as llm:
        report = llm.kv_report()
    assert (report.type_k, report.type_v, report.active, report.note) == ("q4_0", "q4_0", False, "")
    shape = model_shape(read_gguf(model_kinds["neighbours"]))
    assert kv_bytes(shape, CacheSpec.parse(str(path)), 700) == report.bytes
    assert report.ratio == pytest.approx(16 / 4.5, rel=0.01)


def test_a_plan_for_another_model_is_refused(model_kinds: dict[str, Path], tmp_path: Path) -> None:
    path = make(model_kinds["other"], tmp_path / "plan.gguf")
    with pytest.raises(MiniCacheError, match="another model") as caught:
        Llama(str(model_kinds["neighbours"]), minicache=path, **SMALL)
    assert "minicache calibrate" in str(caught.value)
    assert "\n" not in str(caught.value)


def rewritten(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Writes a plan again with some of its keys changed."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if name.startswith("minicache.")}
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    change(keys)
    writer = gguf.GGUFWriter(path, "minicache")
    writer.add_type("minicache-plan")
    for name, value in keys.items():
        add_value(writer, name, value)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    tiny_models.finish(writer)


DAMAGES: dict[str, Callable[[dict[str, object]], object]] = {
    "no block": lambda keys: keys.pop("minicache.rope_block"),
    "version": lambda keys: keys.update({"minicache.version": 9}),
    "no groups, but their sizes": lambda keys: keys.pop("minicache.groups"),
    "short list": lambda keys: keys.update({"minicache.units_k": [1, 2, 3]}),
    "units of a head too few": lambda keys: keys.update(
        {"minicache.units_k": keys["minicache.units_k"][:-7]}  # type: ignore[index]
    ),
    "units of a head too many": lambda keys: keys.update(
        {"minicache.units_v": keys["minicache.units_v"] + [0] * 7}  # type: ignore[operator]
    ),
    "units of one head for all": lambda keys: keys.update({"minicache.units_k": [1, 0, 0, 1, 0, 1, 0] * 2}),
    "units of other heads": lambda keys: keys.update({"minicache.units_v": [1, 0, 0, 1, 0, 1, 0] * 4}),
    "units below zero": lambda keys: keys.update({"minicache.units_v": [0, 0, 0, 0, 0, 0, -1] * 4}),
    "layers": lambda keys: keys.update({"minicache.groups": [0, 1, 1, 2]}),
    "too deep": lambda keys: keys.update({"minicache.groups": [0, 1, 5, 6]}),
    "order": lambda keys: keys.update({"minicache.groups": [1, 0, 4, 5]}),
    "group sizes": lambda keys: keys.update({"minicache.group_sizes": [3, 2]}),
    "an empty group": lambda keys: keys.update({"minicache.group_sizes": [4, 0]}),
    "too many layers": lambda keys: keys.update(
        {"minicache.groups": [0, 1, 2, 3, 4], "minicache.group_sizes": [5]}
        | {
            f"minicache.{name}": keys[f"minicache.{name}"][:n]  # type: ignore[index]
            for name, n in (("heads", 3), ("units_k", 14), ("units_v", 14))
        }
    ),
    "older version": lambda keys: keys.update({"minicache.version": 3}),
    "window": lambda keys: keys.update({"minicache.window": 65537}),
    "long code": lambda keys: keys.update({"minicache.units_v": [9] * 28}),
    "type": lambda keys: keys.update({"minicache.type_k": "q3"}),
    "size": lambda keys: keys.update({"minicache.heads": [2, 32, 32, 2, 32, 64]}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_refused_in_one_line(
    model_kinds: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf")
    rewritten(path, lambda keys: None)
    assert PlanFile.open(path).plan.groups  # writing it again damages nothing
    rewritten(path, lambda keys: DAMAGES[damage](keys) and None)
    with pytest.raises(MiniCacheError, match="make a new one") as caught:
        PlanFile.open(path)
    assert "\n" not in str(caught.value)
    # the library reads the plan itself where a program sets LLAMA_MINICACHE
    params = binding.ffi.new("struct llama_minicache_params *")
    assert not binding.lib.llama_minicache_parse_params(
        f"plan={path}".encode(), params, binding.ffi.NULL, binding.ffi.NULL
    )
    assert str(path) in binding.last_error()


@pytest.mark.parametrize("n_bytes", [0, 3, 100, -1])
def test_a_plan_that_is_cut_short_is_refused(
    model_kinds: dict[str, Path], tmp_path: Path, n_bytes: int
) -> None:
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf")
    path.write_bytes(path.read_bytes()[: n_bytes if n_bytes >= 0 else -1000])
    with pytest.raises(MiniCacheError) as caught:
        Llama(str(model_kinds["neighbours"]), minicache=path, **SMALL)
    assert str(path) in str(caught.value)


def test_a_model_is_no_plan(model_kinds: dict[str, Path]) -> None:
    with pytest.raises(MiniCacheError, match="is not a plan; `minicache calibrate MODEL` makes one"):
        MiniCache(plan=model_kinds["neighbours"])


def test_a_plan_of_more_layers_than_its_model_is_refused(
    model_kinds: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its fingerprint alone is that of the model."""
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf")
    changes = {"minicache.n_layer": 10, "minicache.groups": [0, 1, 8, 9]}
    reader = gguf.GGUFReader(path)
    assert "group.4.codec" in {tensor.name for tensor in reader.tensors}
    path.write_bytes(path.read_bytes().replace(b"group.4.codec", b"group.8.codec"))
    rewritten(path, lambda keys: keys.update(changes))
    assert main(["inspect", str(model_kinds["neighbours"]), "--config", str(path)]) == 2
    assert "was made for another model" in capsys.readouterr().err


def test_a_plan_that_cannot_be_written_is_reported(model_kinds: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MiniCacheError, match="cannot be written"):
        make(model_kinds["neighbours"], tmp_path / "file" / "plan.gguf")


def test_a_plan_and_a_model_are_opened_once(
    model_kinds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama walks a model's header once; a plan's file is opened once, by the native library, and carried."""
    path = make(model_kinds["neighbours"], tmp_path / "plan.gguf")
    read: list[str] = []
    read_one = gguf_file._read_one
    monkeypatch.setattr(gguf_file, "_read_one", lambda path: read.append(path.name) or read_one(path))
    native = binding.read_plan
    monkeypatch.setattr(binding, "read_plan", lambda path: read.append("native") or native(path))
    with Llama(str(model_kinds["neighbours"]), minicache=path, **SMALL) as llm:
        assert llm.kv_report().mode == "code"
    assert sorted(read) == sorted(["native", model_kinds["neighbours"].name])


def test_an_opened_plan_serves_many_contexts(model_kinds: dict[str, Path], tmp_path: Path) -> None:
    plan = PlanFile.open(make(model_kinds["neighbours"], tmp_path / "plan.gguf"))
    plan.path.unlink()
    for _ in range(2):
        with Llama(str(model_kinds["neighbours"]), minicache=MiniCache(plan=plan), **SMALL) as llm:
            assert llm.kv_report().mode == "code"


def test_a_plan_of_a_deeper_model_is_refused_by_every_command(
    model_kinds: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any size is computed from its layers, and before a model is loaded."""
    deep = tiny_models.random_model(n_layer=10).write(tmp_path / "deep.gguf")
    file, group = read_gguf(deep), group_format(deep, 8, 9)
    plan = Plan(fingerprint(file), 10, 128, "q8_0", "q8_0", groups=(group,))
    path = tmp_path / "plan.gguf"
    write_plan(path, plan, {8: codec_of(group)})
    model = str(model_kinds["neighbours"])
    for command in (
        ["inspect", model, "--ctx", "256"],
        ["bench", model, "--ctx", "256", "--threads", "1"],
        ["evaluate", model, "--ctx", "256", "--threads", "1"],
        ["chat", model, "--prompt", "hi", "--threads", "1"],
    ):
        assert main([*command, "--config", str(path)]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1
        assert "was made for another model" in error[0]


def test_settings_with_a_plan_come_back_from_their_text(model_kinds: dict[str, Path], tmp_path: Path) -> None:
    for name in ("plan.gguf", "odd=name.gguf"):
        plan = make(model_kinds["neighbours"], tmp_path / name)
        for settings in (
            MiniCache(plan=plan),
            *([MiniCache(plan=plan, strict=True)] * (name == "plan.gguf")),
        ):
            found = CacheSpec.parse(settings.spec()).minicache
            assert found == settings

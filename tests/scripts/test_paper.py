"""scripts/paper on a tiny model: what it measures and writes, and that it measures nothing twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import CacheSpec
from minicache_cpp.evaluate import evaluation
from minicache_cpp.evaluate.settings import Settings
from paper import figures
from paper.__main__ import main
from support.family_models import FAMILIES
from support.loaded import Loaded


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the names of all caches that are measured."""
    names: list[str] = []
    measure = evaluation.measure

    def counting(file: Any, material: Any, settings: Settings, *more: Any) -> Any:
        names.extend(spec.name for spec in settings.specs)
        return measure(file, material, settings, *more)

    monkeypatch.setattr(evaluation, "measure", counting)
    return names


def test_a_run_and_its_continuation(
    random_model: Loaded, text: Path, tmp_path: Path, measured: list[str]
) -> None:
    out = tmp_path / "paper"
    small = ["--ctx", "64", "--chunks", "1", "--tokens", "512", "--text", str(text)]
    command = [str(random_model.path), "--out", str(out), *small]
    assert main([*command, "--type", "f16", "--figure", "layers", "--figure", "t"]) == 0
    folder = out / random_model.path.stem
    first = json.loads((folder / "results.json").read_text())
    n_first = len(measured)
    # three depths of four modes, t of two modes (0.6 is among the depths), and f16
    assert n_first == len(first["rows"]) == 3 * 4 + 2 * 4 + 1
    assert all(row["kl_mean"] is not None for row in first["rows"].values())
    assert set(first["pairs"]) == {"0+1", "2+3", "4+5"}

    rows = {label: row for label, row in first["rows"].items() if row["config"]["start"] == 2}
    slerp = rows["slerp:start=2,t=0.6,retain=0.05,type=f16"]
    code = rows["code:start=2,like=slerp f16"]
    assert 0.9 * slerp["bytes_per_token"] <= code["bytes_per_token"] <= slerp["bytes_per_token"]
    assert code["kl_mean"] < slerp["kl_mean"]
    assert rows["average:start=2,retain=0.0,type=f16"]["ratio"] == pytest.approx(1.5, rel=0.02)

    # for all figures, only new configurations are measured
    assert main([*command, "--type", "f16", "--type", "q8_0"]) == 0
    second = json.loads((folder / "results.json").read_text())
    assert {label: second["rows"][label] for label in first["rows"]} == first["rows"]
    assert len(measured) == len(second["rows"])
    ratios = [
        row["ratio"] for label, row in second["rows"].items() if label.startswith("code:start=0,ratio=")
    ]
    assert ratios == sorted(ratios)
    assert all(got >= want for got, want in zip(ratios, figures.RATIOS, strict=True))

    n_all = len(measured)
    assert main([*command, "--type", "f16", "--type", "q8_0"]) == 0
    assert len(measured) == n_all

    page = (folder / "results.md").read_text()
    for words in ("## merged layers, q8_0", "## t, layers 4", "## quality over the ratio", "code, ratio 8"):
        assert words in page
    pytest.importorskip("matplotlib")
    for name in ("layers-f16", "layers-q8_0", "t", "retain", "ratio"):
        assert (folder / f"{name}.svg").stat().st_size > 1000


def test_other_settings_are_refused(
    random_model: Loaded, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(random_model.path), "--out", str(tmp_path), "--figure", "t", "--text", str(text)]
    small = ["--chunks", "1", "--tokens", "512"]
    assert main([*command, *small, "--ctx", "64"]) == 0
    capsys.readouterr()
    assert main([*command, *small, "--ctx", "128"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main([*command, *small, "--ctx", "64"]) == 0
    assert main([*command, *small, "--ctx", "128", "--fresh"]) == 0


def test_bad_input_is_refused(
    random_model: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.gguf"), "--out", str(tmp_path)]) == 2
    assert main([str(random_model.path), "--out", str(tmp_path), "--ctx", "3"]) == 2
    assert "--ctx 3" in capsys.readouterr().err


@pytest.mark.parametrize("n_layer", [2, 5, 12, 16, 33])
def test_figures_merge_the_layers_they_name(n_layer: int) -> None:
    for figure in figures.figures(n_layer, figures.FIGURES, ("f16", "q4_0")):
        for config in figure.configs:
            assert 0 <= config.start < n_layer
            assert config.mode == "plain" or (n_layer - config.start) % 2 == 0
            if config.mode in ("plain", "average", "slerp"):
                assert CacheSpec.parse(config.label) == config.spec
    shares = [x for x, _ in figures.layers_figure(n_layer, "f16").curves[0].points]
    assert shares == sorted(shares)
    assert n_layer != 16 or 0.875 in shares
    assert max(shares) == (n_layer - n_layer % 2) / n_layer


def test_a_model_without_pairs(tmp_path: Path, text: Path) -> None:
    """Of a latent cache nothing can be merged, and so nothing aligned."""
    path = FAMILIES["deepseek2"].write(tmp_path / "latent.gguf")
    command = [str(path), "--out", str(tmp_path), "--figure", "t", "--text", str(text), "--ctx", "64"]
    assert main([*command, "--chunks", "1", "--tokens", "512"]) == 2

"""A plan fitted to one kind of text serves another kind: codes must not depend on the text they were fitted to."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp import CacheSpec
from minicache_cpp.calibrate.calibration import calibrate
from minicache_cpp.calibrate.options import Options
from minicache_cpp.evaluate import evaluation
from minicache_cpp.evaluate.material import prepare
from minicache_cpp.evaluate.settings import Settings
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.text import bundled
from minicache_cpp.text.files import read_texts

# A plan used on another kind of text than it was fitted to may lose this many times as much as a plan fitted to every
# kind. Measured: 1.52 and 1.30 (docs/results.md). The rest is room for the rounding of other machines.
MOST = 2.5

KINDS = {
    "code and tables": ("code.txt", "tables.txt", "mathematics.txt"),
    "prose": ("essay.txt", "science.txt", "story.txt"),
}
USED_ON = {
    "code and tables": ("narrative.txt", "history.txt", "interview.txt"),
    "prose": ("code.txt", "figures.txt", "mathematics.txt"),
}


def fitted(model: Path, files: list[Path], output: Path) -> Path:
    options = Options(texts=tuple(files), ratio=5.0, tokens=4096, refine=0, threads=1)
    calibrate(model, options, output)
    return output


@pytest.fixture(scope="module")
def fitted_to_all(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(demo_model, bundled.calibration_files(), tmp_path_factory.mktemp("plans") / "all.gguf")


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_fitted_to_another_kind_of_text_holds(
    demo_model: Path, fitted_to_all: Path, tmp_path: Path, kind: str
) -> None:
    files = [path for path in bundled.calibration_files() if path.name in KINDS[kind]]
    plans = {"other": fitted(demo_model, files, tmp_path / "other.gguf"), "all": fitted_to_all}

    used_on = [path for path in bundled.evaluation_files() if path.name in USED_ON[kind]]
    settings = Settings(
        contexts=[512],
        offsets=[0],
        specs=[CacheSpec.parse(str(path)) for path in plans.values()],
        recall=None,
    )
    material = prepare(demo_model, read_texts(used_on), settings)
    rows = evaluation.measure(read_gguf(demo_model), material, settings)[0]["rows"]
    kl = {name: row["kl_mean"] for name, row in zip(plans, rows[-2:], strict=True)}
    assert 0 < kl["other"] <= MOST * kl["all"], kl

"""A plan fitted to one kind of text serves another kind: codes must not depend on the text they were fitted to."""

from __future__ import annotations

from pathlib import Path

from minicache_cpp import CacheSpec
from minicache_cpp.calibrate.calibration import calibrate
from minicache_cpp.calibrate.options import Options
from minicache_cpp.evaluate import evaluation
from minicache_cpp.evaluate.material import prepare
from minicache_cpp.evaluate.settings import Settings
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.text import bundled
from minicache_cpp.text.files import read_texts

# A plan used on another kind of text than it was fitted to may lose this many times as much above the floor as the plan
# that ships, which is fitted to every kind. Measured: 1.2, and 1.9 without the package's text beside that of the kind.
# The rest is room for the rounding of other machines.
MOST = 1.8

FITTED_TO = ("code.txt", "tables.txt", "mathematics.txt")
USED_ON = ("narrative.txt", "history.txt", "interview.txt")


def test_a_plan_fitted_to_code_holds_on_prose(smollm2: Path, smollm2_plan: Path, tmp_path: Path) -> None:
    texts = tuple(path for path in bundled.calibration_files() if path.name in FITTED_TO)
    fitted = tmp_path / "code.gguf"
    calibrate(smollm2, Options(texts=texts, ratio=5.0, tokens=2560, threads=1), fitted)

    specs = [CacheSpec.parse(str(path)) for path in (fitted, smollm2_plan)]
    settings = Settings(contexts=[512], offsets=[0], specs=specs, chunks=2)
    material = prepare(
        smollm2, read_texts([p for p in bundled.evaluation_files() if p.name in USED_ON]), settings
    )
    to_code, to_all = (
        row["kl_excess"] for row in evaluation.measure(read_gguf(smollm2), material, settings)[0]["rows"]
    )
    assert 0 < to_code <= MOST * to_all, (to_code, to_all)

"""What LLAMA_MINICACHE does in a program that knows only llama_cpp, whose log verbose=False silences."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oracle.model import Config
from support import tiny_models
from support.loaded import Loaded
from support.plans import coded

# makes a context for each model that is named, and says how it went
PROGRAM = """
import sys
import llama_cpp

for path in sys.argv[2:]:
    try:
        llm = llama_cpp.Llama(path, n_ctx=256, n_threads=1, verbose=False, flash_attn=sys.argv[1] == "on")
        llm.eval([1, 2, 3, 4])
        print("made")
        llm.close()
    except ValueError as error:
        print(error)
"""


def run(library: Path, text: str, *models: Path, flash_attention: str = "on") -> tuple[list[str], list[str]]:
    """How making a context of each model went, and the lines on stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    environment |= {"LLAMA_CPP_LIB_PATH": str(library), "LLAMA_MINICACHE": text}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, flash_attention, *models],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr.splitlines()


@pytest.fixture(scope="module")
def plan(random_model: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "model.plan.gguf"
    coded(random_model, Config(random_model.pairs), path)
    return path


def test_one_line_says_how_far_the_cache_is_merged(
    library_dir: Path, random_model: Loaded, plan: Path
) -> None:
    made, lines = run(library_dir, str(plan), random_model.path, random_model.path)
    assert made == ["made", "made"]
    assert len(lines) == 1
    assert lines[0].startswith("LLAMA_MINICACHE: the KV cache is merged: ")


def test_without_flash_attention_one_line_says_what_to_set(
    library_dir: Path, random_model: Loaded, plan: Path
) -> None:
    made, lines = run(library_dir, str(plan), random_model.path, flash_attention="off")
    assert made == ["Failed to create llama_context"]
    assert len(lines) == 1
    assert lines[0].startswith("LLAMA_MINICACHE: MiniCache needs flash attention")
    assert "flash_attn=True" in lines[0]


@pytest.mark.parametrize("flash_attention", ["on", "off"])
def test_another_model_gets_a_plain_cache_and_a_warning(
    library_dir: Path, load: Callable[..., Loaded], plan: Path, flash_attention: str
) -> None:
    other = load(tiny_models.random_model, seed=1)
    deeper = load(tiny_models.random_model, n_layer=8)
    models = (other.path, deeper.path, other.path)
    made, lines = run(library_dir, str(plan), *models, flash_attention=flash_attention)
    assert made == ["made"] * 3
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(f"LLAMA_MINICACHE: the plan {plan} was made for another model")
        assert line.endswith("this model's cache is a plain one")


def test_a_model_beside_that_of_the_plan(
    library_dir: Path, load: Callable[..., Loaded], random_model: Loaded, plan: Path
) -> None:
    other = load(tiny_models.random_model, seed=1)
    made, lines = run(library_dir, f"plan={plan}", other.path, random_model.path)
    assert made == ["made", "made"]
    assert "another model" in lines[0]
    assert "is merged" in lines[1]


def test_strict_refuses_another_model(library_dir: Path, load: Callable[..., Loaded], plan: Path) -> None:
    other = load(tiny_models.random_model, seed=1)
    made, lines = run(library_dir, f"plan={plan},strict=1", other.path)
    assert made == ["Failed to create llama_context"]
    assert len(lines) == 1
    assert "was made for another model" in lines[0]


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("on", "write plan=PLAN"),
        ("auto", "`minicache calibrate MODEL -o PLAN`"),
        ("start=0.5", "write slerp:, average: or plain: before it"),
        ("plan=none.gguf", "does not exist"),
        ("slerp:type=q4_0", "is the program's own option"),
    ],
)
def test_a_text_that_is_refused_is_one_line(
    library_dir: Path, random_model: Loaded, text: str, advice: str
) -> None:
    made, lines = run(library_dir, text, random_model.path)
    assert made == ["Failed to create llama_context"]
    assert len(lines) == 1
    assert lines[0].startswith("LLAMA_MINICACHE: ")
    assert advice in lines[0]


@pytest.mark.parametrize("text", ["", " ", "0", "off"])
def test_off_says_nothing(library_dir: Path, random_model: Loaded, text: str) -> None:
    assert run(library_dir, text, random_model.path) == (["made"], [])

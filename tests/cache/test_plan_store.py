"""Where plans are found: beside the model, among those that ship, in the user's cache directory, in this order."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

from minicache_cpp import Llama, MiniCacheWarning
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.cache.plan_store import DEFAULT_RATIO, find_plan, plan_beside, plan_path, shipped_plans
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile.fingerprint import fingerprint
from minicache_cpp.modelfile.gguf_file import GGUFFile, read_gguf
from minicache_cpp.models import table
from oracle.model import Config
from support import plans
from support.loaded import Loaded
from support.paths import ROOT


@dataclass
class Places:
    """A model in a folder of its own, its plan, and the plan of another model."""

    model: GGUFFile
    plan: Path
    foreign: Path
    aligned: Path
    shipped: Path

    def put(self, path: Path, plan: Path | None = None) -> Path:
        """Copies a plan, by default the model's, to a path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(plan or self.plan, path)
        return path

    def ship(self, ratio: str, plan: Path | None = None) -> Path:
        return self.put(self.shipped / f"{fingerprint(self.model)}-{ratio}.gguf", plan)

    def found(self) -> Path | None:
        """Where the plan is found, without a warning."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan_file = find_plan(self.model)
        return plan_file.path if plan_file is not None else None


@pytest.fixture
def places(
    random_model: Loaded, parallel_model: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Places:
    monkeypatch.setenv("MINICACHE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(table, "data_folder", lambda: tmp_path / "data")
    folder, q8_0 = tmp_path / "folder", Config(type_k="q8_0", type_v="q8_0")
    folder.mkdir()
    plan, foreign, aligned = (tmp_path / name for name in ("plan.gguf", "foreign.gguf", "aligned.gguf"))
    plans.plain(random_model, q8_0, plan)
    plans.plain(parallel_model, q8_0, foreign)
    plans.aligned(random_model, Config(groups=((2, 3),)), aligned)
    model = read_gguf(shutil.copy(random_model.path, folder / "some.Q4_1.gguf"))
    return Places(model, plan, foreign, aligned, tmp_path / "data" / "plans")


def test_the_order(places: Places) -> None:
    assert places.found() is None
    kept = places.put(plan_path(places.model))
    assert places.found() == kept
    shipped = places.ship("5")
    assert places.found() == shipped
    beside = places.put(plan_beside(places.model))
    assert beside == places.model.path.parent / "some.Q4_1.plan.gguf"
    assert places.found() == beside
    for path, then in ((beside, shipped), (shipped, kept), (kept, None)):
        path.unlink()
        assert places.found() == then


def test_of_plans_that_ship_the_one_nearest_to_the_default_ratio_is_taken(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DEFAULT_RATIO == 5
    far, near, nearer = (places.ship(ratio) for ratio in ("8", "3.5", "5.25"))
    places.ship("best")
    places.put(places.shipped / "0123456789abcdef-5.gguf", places.foreign)
    assert shipped_plans(places.model) == [nearer, near, far]
    opened, open_plan = [], PlanFile.open

    def opening(path: Path) -> PlanFile:
        opened.append(path)
        return open_plan(path)

    monkeypatch.setattr(PlanFile, "open", opening)
    assert places.found() == nearer
    # the names say enough: only the plan that is used is opened
    assert opened == [nearer]


def test_a_plan_that_ships_and_cannot_be_used_counts_as_none(places: Places) -> None:
    near, far = places.ship("5", places.foreign), places.ship("8")
    assert places.found() == far
    near.write_bytes(near.read_bytes()[:100])
    assert places.found() == far
    far.unlink()
    assert places.found() is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("damaged", "truncated|damaged|cannot|no plan"),
        ("foreign", "made for another model"),
        ("aligned", "is for study; name it to use it"),
        ("model", "is not a plan"),
    ],
)
def test_a_plan_beside_the_model_that_cannot_be_used_is_skipped_with_a_warning(
    places: Places, kind: str, words: str
) -> None:
    beside = plan_beside(places.model)
    if kind == "damaged":
        places.put(beside).write_bytes(places.plan.read_bytes()[:-50])
    else:
        of_kind = {"foreign": places.foreign, "aligned": places.aligned, "model": places.model.path}
        places.put(beside, of_kind[kind])
    message = f"the plan beside the model is not used: .*({words})"
    with pytest.warns(MiniCacheWarning, match=message) as caught:
        assert find_plan(places.model) is None
    assert [one.filename for one in caught] == [__file__]
    assert str(beside) in str(caught[0].message)
    shipped = places.ship("5")
    with pytest.warns(MiniCacheWarning, match=message):
        found = find_plan(places.model)
    assert found is not None and found.path == shipped
    # `inspect` shows the plan and has the warning among its notes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = inspect_model(places.model.path, 256)
    assert shown["rows"][-1]["name"] == str(shipped)
    assert [note for note in shown["notes"] if "beside the model" in note]


def test_auto_takes_the_plan_beside_the_model(places: Places) -> None:
    beside = places.put(plan_beside(places.model))
    arguments = {"n_ctx": 256, "n_threads": 1, "verbose": False, "calibrate": "never"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        llm = Llama(str(places.model.path), minicache="auto", **arguments)  # type: ignore[arg-type]
    with llm:
        assert llm.minicache is not None and llm.minicache.plan_file is not None
        assert llm.minicache.plan_file.path == beside
    places.put(beside, places.foreign)
    places.ship("5")
    with pytest.warns(MiniCacheWarning, match="beside the model is not used") as caught:
        llm = Llama(str(places.model.path), minicache="auto", **arguments)  # type: ignore[arg-type]
    with llm:
        assert llm.minicache is not None and llm.minicache.plan_file is not None
        assert llm.minicache.plan_file.path.parent == places.shipped
    assert [one.filename for one in caught] == [__file__]


def test_the_plans_that_ship_are_sound() -> None:
    """Their names say whose they are, and how small they make its cache."""
    paths = sorted((ROOT / "models" / "plans").glob("*.gguf"))
    assert paths
    for path in paths:
        name, _, ratio = path.stem.partition("-")
        plan = PlanFile.open(path).plan
        assert plan.fingerprint == name
        assert plan.mode == "code"
        assert float(ratio) > 1

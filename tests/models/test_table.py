"""The table of models that ships, and where it is looked for."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.models import store, table
from minicache_cpp.options import add_model_argument
from support.paths import ROOT

SHA256 = re.compile("[0-9a-f]{64}")


def test_every_row_is_whole() -> None:
    models = table.read_table()
    assert {"smollm2-135m", "qwen2.5-coder-0.5b", "gemma-3-270m"} <= set(models)
    hashes = []
    for name, model in models.items():
        assert re.fullmatch("[a-z0-9][a-z0-9.-]*", name)
        # a name that ends like a file would be taken for a path
        assert not store.is_path(name)
        assert model.what and model.licence and model.context > 0 and model.packages
        # the line that is shown says where the licence can be read
        assert re.search(r"https?://\S|\w\.\w+/", model.notice)
        assert "\n" not in model.notice
        # a wheel is compressed, and not by half
        assert sum(package.bytes for package in model.packages) > model.bytes / 2
        hashes += [model.sha256, *(package.sha256 for package in model.packages)]
        for package in model.packages:
            assert package.name and package.version and package.bytes > 0
            assert package.member.startswith(package.name.replace("-", "_"))
    assert all(SHA256.fullmatch(one) for one in hashes)
    assert len(set(hashes)) == len(hashes)


def test_the_demo_model_is_in_the_table_and_in_the_help() -> None:
    assert store.DEMO in table.read_table()
    parser = argparse.ArgumentParser()
    add_model_argument(parser)
    assert f"(default: {store.DEMO})" in re.sub(r"\s+", " ", parser.format_help()).replace("- ", "-")


@pytest.mark.parametrize("document", ["docs/models.md", "docs/licenses.md"])
def test_the_documents_name_every_model_and_its_licence(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for model in table.read_table().values():
        assert any(model.name in line and model.licence in line for line in text.splitlines()), model.name


def test_plans_that_ship_can_be_opened() -> None:
    for path in table.plans_folder().glob("*"):
        fingerprint, _, ratio = path.stem.partition("-")
        assert re.fullmatch("[0-9a-f]{16}", fingerprint) and float(ratio) >= 1 and path.suffix == ".gguf"
        assert PlanFile.open(path).plan.fingerprint == fingerprint


def test_the_data_lie_in_the_package_or_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "python" / "minicache_cpp" / "models"
    package.mkdir(parents=True)
    monkeypatch.setattr(table, "__file__", str(package / "table.py"))
    assert table.data_folder() == tmp_path / "models"
    with pytest.raises(MiniCacheError, match=r"table\.json.*install minicache-cpp again"):
        table.read_table()
    (package / "data").mkdir()
    assert table.data_folder() == package / "data"
    assert table.plans_folder() == package / "data" / "plans"

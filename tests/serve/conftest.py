"""A tiny model whose greedy answers are printable and do not end, with its plan, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oracle.model import Config
from support import tiny_models
from support.loaded import Loaded
from support.plans import ALL_PAIRS, coded
from support.servers import Served, serving

PRINTABLE = [tiny_models.FIRST_TOKEN + byte for byte in range(ord(" "), ord("~") + 1)]


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A model that has a plan beside it, which keeps all its layers as codes."""
    tiny = tiny_models.random_model(head_size=64)
    weight = tiny.weights["output.weight"]
    others = [token for token in range(len(weight)) if token not in PRINTABLE]
    weight[others] = 0
    folder = tmp_path_factory.mktemp("planned")
    loaded = Loaded(tiny, folder / "tiny.gguf")
    coded(loaded, Config(groups=ALL_PAIRS), folder / "tiny.plan.gguf")
    return loaded


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of saved slots, which the server makes."""
    return tmp_path_factory.mktemp("saves") / "slots"


@pytest.fixture(scope="module")
def served(tools_dir: Path, planned: Loaded, saved: Path) -> Iterator[Served]:
    arguments = ["--ctx", 512, "--slots", 4, "--save", saved, "--json"]
    passed_on = ["--metrics", "--context-shift"]
    with serving(tools_dir, planned.path, *arguments, "--", *passed_on) as one:
        yield one

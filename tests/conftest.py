"""What the tests share: tiny models, made and loaded once, and the paths that CI sets in the environment."""

from __future__ import annotations

import support.blas_threads  # noqa: F401  # isort: skip  (must come before NumPy)

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp.cache.plan_store import shipped_plans
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.models import store
from minicache_cpp.native.binding import llama_h
from support import contexts, tiny_models
from support.loaded import Loaded
from support.paths import required
from support.tiny_models import TinyModel

SMOLLM2 = f"{store.DEMO}.gguf"
# before the tests get a cache directory of their own
USERS_MODELS = store.models_folder()


@pytest.fixture(scope="session", autouse=True)
def own_user_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the tests away from the user's plans, and calibrates only in tests that ask for it."""
    os.environ["MINICACHE_CACHE_DIR"] = str(tmp_path_factory.mktemp("user-cache"))
    os.environ["MINICACHE_CALIBRATE"] = "never"


@pytest.fixture(scope="session", autouse=True)
def quiet_library() -> None:
    """Keeps llama.cpp's log out of the output."""
    llama_h.llama_log_set(contexts.quiet, ctypes.c_void_p(0))


@pytest.fixture(scope="session")
def library_dir() -> Path:
    """The directory of the patched libllama that this process has loaded."""
    return Path(llama_h._lib._name).resolve().parent


@pytest.fixture(scope="session")
def stock_dir() -> Path:
    return required(
        "MINICACHE_STOCK_LIB", "the directory of a stock libllama, built with -DMINICACHE_PATCH=OFF"
    )


@pytest.fixture(scope="session")
def tools_dir() -> Path:
    return required(
        "MINICACHE_TOOLS_BIN", "the directory of upstream's tools, built with -DMINICACHE_TOOLS=ON"
    )


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of smollm2-135m, which bootstrap.py fetches into the user's cache directory before it runs the tests."""
    return required(
        "MINICACHE_SMOLLM2", "`minicache models get smollm2-135m` fetches it", USERS_MODELS / SMOLLM2
    )


@pytest.fixture(scope="session")
def smollm2_plan(smollm2: Path) -> Path:
    """The plan of smollm2-135m that "auto" takes of those that ship: the one of ratio 5."""
    return shipped_plans(read_gguf(smollm2))[0]


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers in every test."""
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Loaded]:
    """load(maker, **arguments) makes and loads a model of `tiny_models` once in a session."""
    directory = tmp_path_factory.mktemp("models")
    loaded: dict[tuple[object, ...], Loaded] = {}

    def get(maker: Callable[..., TinyModel], **arguments: object) -> Loaded:
        key = (maker, *sorted(arguments.items()))
        if key not in loaded:
            loaded[key] = Loaded(maker(**arguments), directory / f"{maker.__name__}-{len(loaded)}.gguf")
        return loaded[key]

    return get


@pytest.fixture(scope="session")
def random_model(load: Callable[..., Loaded]) -> Loaded:
    """Six layers. Its default pair is (3, 4), whose layers have nothing in common; the other four are plain."""
    return load(tiny_models.random_model)


@pytest.fixture(scope="session")
def parallel_model(load: Callable[..., Loaded]) -> Loaded:
    """Eight layers whose pairs (4, 5) and (6, 7) have parallel K and V, so that merging them loses nothing."""
    return load(tiny_models.parallel_model, n_layer=8)


@pytest.fixture(scope="session")
def model(random_model: Loaded) -> Path:
    """The file of `random_model`."""
    return random_model.path


@pytest.fixture(scope="session")
def model_kinds(load: Callable[..., Loaded]) -> dict[str, Path]:
    """Files of models that differ in weights, in RoPE and in their layers."""
    return {
        "neighbours": load(tiny_models.random_model).path,
        "other": load(tiny_models.random_model, seed=1).path,
        "halves": load(tiny_models.random_model, arch="qwen2").path,
        "alibi": load(tiny_models.random_model, arch="refact").path,
        "odd": load(tiny_models.random_model, n_layer=7, n_head_kv=1).path,
    }


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 2000 bytes, each of which is a token of the tiny models."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text("".join(chr(33 + (i * i + 7 * i) % 90) for i in range(2000)), encoding="utf-8")
    return path

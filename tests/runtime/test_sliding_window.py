"""Rewinds in models whose sliding-window layers forget what lies behind the window."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from minicache_cpp import Llama
from minicache_cpp.native.binding import llama_h
from support.family_models import FAMILIES
from support.tiny_models import prompt

SETTINGS: dict[str, Any] = {
    "n_ctx": 512,
    "n_ubatch": 64,
    "n_threads": 1,
    "n_threads_batch": 1,
    "verbose": False,
}
TOKENS = prompt(400)


@pytest.fixture(scope="module", params=["gemma3", "gpt-oss", "gemma4-shared"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(FAMILIES[request.param].write(tmp_path_factory.mktemp("model") / "model.gguf"))


def logits(llm: Llama) -> npt.NDArray[np.float32]:
    """The logits of the last token."""
    row = llama_h.llama_get_logits_ith(llm.ctx, -1)
    return np.ctypeslib.as_array(row, (llm.n_vocab(),)).copy()


def rewind(llm: Llama, n_tokens: int) -> None:
    llm._ctx.kv_cache_seq_rm(-1, n_tokens, -1)
    llm.n_tokens = n_tokens


@pytest.mark.filterwarnings("ignore:the layers merged here")
@pytest.mark.parametrize("spec", ["slerp:start=0,retain=1,pool=f16", "f16"])
@pytest.mark.parametrize("n_kept", [1, 40, 300, 390, 399])
def test_a_rewind_goes_on_as_a_fresh_context_does(model: str, n_kept: int, spec: str) -> None:
    """What the windows have forgotten is read again, whatever the cache."""
    more = prompt(5, 1)
    with Llama(model, minicache=spec, **SETTINGS) as llm:
        llm.eval(TOKENS)
        rewind(llm, n_kept)
        llm.eval(more)
        found = logits(llm)
        assert llm.input_ids[: llm.n_tokens].tolist() == TOKENS[:n_kept] + more
    with Llama(model, minicache=spec, **SETTINGS) as fresh:
        fresh.eval(TOKENS[:n_kept])
        fresh.eval(more)
        assert np.abs(found - logits(fresh)).max() <= 0.02 * np.abs(found).max()


def test_windows_are_small_unless_asked_otherwise(model: str) -> None:
    cells = []
    for more in ({}, {"swa_full": True}):
        with Llama(model, minicache="q8_0", **SETTINGS, **more) as llm:
            cells.append(llm.kv_report().n_cells_swa)
    assert cells == [256, 512]
    with Llama(model, **SETTINGS) as llm:  # upstream's default
        assert llm.kv_report().n_cells_swa == 512

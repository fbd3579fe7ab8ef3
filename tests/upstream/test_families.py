"""The tiny models of other families are what their table says, and upstream computes sensible logits with them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support import tiny_models
from support.contexts import Context, Logits, Model, captured_log, nmse, run
from support.family_models import FAMILIES
from support.family_table import Family

PROMPT = tiny_models.prompt(100)
OTHER = tiny_models.prompt(100, seed=1)
EARLY = 2  # the place of the token that one test changes

# what the log says while a cache is made
SECTION = re.compile(r"creating +(non-SWA|SWA) KV cache")
OWNED = re.compile(r"(llama_kv_cache|llama_memory_recurrent)[:,] layer +(\d+): dev")
REUSED = re.compile(r"llama_kv_cache: - layer +(\d+): reuse layer (\d+)")


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="module")
def path(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.write(tmp_path_factory.mktemp("families") / f"{family.name}.gguf")


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    model = Model(path)
    yield model
    model.close()


@pytest.fixture(scope="module")
def logits(model: Model) -> Logits:
    return decode(model, PROMPT)


def decode(
    model: Model, tokens: list[int], *, flash_attn: int = 1, n_ubatch: int = 32, type_kv: str = "f16"
) -> Logits:
    with Context(
        model,
        n_ubatch=n_ubatch,
        flash_attn=flash_attn,
        type_k=type_kv,
        type_v=type_kv,
        swa_full=False,
    ) as context:
        return context.decode(run(tokens))


def cache_layers(model: Model) -> tuple[dict[str, set[int]], dict[int, int]]:
    """The layers that own a part of the cache, by kind, and the layers that read another one's, from the log."""
    kind, owned, reused = "grows", {"grows": set(), "window": set(), "recurrent": set()}, {}
    with captured_log() as lines, Context(model):
        pass
    for _, text in lines:
        if found := SECTION.search(text):
            kind = "grows" if found[1] == "non-SWA" else "window"
        elif found := OWNED.search(text):
            owned["recurrent" if found[1] == "llama_memory_recurrent" else kind].add(int(found[2]))
        elif found := REUSED.search(text):
            reused[int(found[1])] = int(found[2])
    return owned, reused


def test_a_family_is_small(family: Family, path: Path) -> None:
    # some sizes of gemma3n are fixed in upstream, and with fewer layers none would read another's cache
    assert path.stat().st_size < (8.5e6 if family.name == "gemma3n" else 3.5e6)


def test_the_cache_has_the_layers_of_the_table(family: Family, model: Model) -> None:
    owned, reused = cache_layers(model)
    assert owned == {
        "grows": set(family.grows),
        "window": set(family.window),
        "recurrent": set(family.recurrent),
    }
    assert reused == family.reuses
    assert sorted({*family.grows, *family.window, *family.recurrent, *reused, *family.cacheless}) == list(
        range(model.n_layer)
    )


def test_logits_are_finite_and_well_spread(logits: Logits) -> None:
    assert np.isfinite(logits).all()
    assert logits.std(axis=1).min() > 1
    assert logits.std(axis=1).max() < 10
    # and they depend on the token: no entry of the vocabulary has the same logit everywhere
    assert logits.std(axis=0).min() > 0.5


def test_earlier_tokens_matter(model: Model, logits: Logits) -> None:
    changed = list(PROMPT)
    changed[EARLY] = OTHER[EARLY]
    assert changed != PROMPT
    after = decode(model, changed)
    assert np.array_equal(after[:EARLY], logits[:EARLY])
    assert nmse(after[EARLY], logits[EARLY]) > 0.1
    assert nmse(after[-1], logits[-1]) > 1e-3
    # the same last token after another prompt
    other = decode(model, [*OTHER[:-1], PROMPT[-1]])
    assert nmse(other[-1], logits[-1]) > 0.05


def test_the_size_of_ubatches_and_flash_attention_do_not_matter(model: Model, logits: Logits) -> None:
    """What the cache keeps between ubatches is what attention reads within one, up to the cache's F16."""
    assert nmse(decode(model, PROMPT, flash_attn=0, n_ubatch=128), logits) < 1e-4
    assert nmse(decode(model, PROMPT, n_ubatch=7), logits) < 1e-4


def test_the_cache_can_be_quantized_and_attention_reads_it(
    family: Family, model: Model, logits: Logits
) -> None:
    error = nmse(decode(model, PROMPT, type_kv="q4_0"), logits)
    if family.grows or family.window:
        assert 1e-4 < error < 0.3
    else:
        assert error == 0

"""Models whose pairs lose nothing by merging: with MiniCache they give the logits of the full cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from oracle.model import Config, Oracle
from support import tiny_models
from support.bounds import ROUNDING
from support.contexts import interleaved, nmse, run
from support.loaded import Loaded
from support.oracle_runs import native
from support.tiny_models import prompt


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("retain", [0.0, 0.05])
def test_parallel_layers_equal_the_full_cache_in_every_split(
    load: Callable[..., Loaded], equal: bool, retain: float
) -> None:
    loaded = load(tiny_models.parallel_model, n_layer=8, equal=equal)
    sequences = [prompt(60, i) for i in range(4)]
    full = {
        n_seq: native(loaded, Config(n_seq_max=n_seq), interleaved(sequences[:n_seq])) for n_seq in (1, 4)
    }
    for n_seq, unified in ((1, True), (4, True), (4, False)):
        for n_ubatch in (1, 7, 64, 512):
            config = Config(
                loaded.pairs,
                retain=retain,
                pool_type="f16",
                n_ubatch=n_ubatch,
                n_seq_max=n_seq,
                unified=unified,
            )
            result = native(loaded, config, interleaved(sequences[:n_seq]))
            assert nmse(result, full[n_seq]) <= ROUNDING, (n_seq, unified, n_ubatch)


def test_parallel_layers_have_different_magnitudes(parallel_model: Loaded) -> None:
    """Otherwise the test above would not notice magnitudes that are lost or swapped."""
    config = Config(parallel_model.pairs, n_ubatch=7)
    oracle = Oracle(parallel_model.tiny, config)
    oracle.decode(run(prompt(30)))
    for pair in oracle.groups.values():
        mag = pair.mag[0, :30]
        assert np.median(mag[:, 0] / mag[:, 1]) > 1.1
        assert max(max(distance) for distance in pair.distances) < 1e-4


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("start", [0.0, 0.5])
def test_retaining_every_token_is_the_full_cache(
    load: Callable[..., Loaded], arch: str, start: float
) -> None:
    loaded = load(tiny_models.random_model, arch=arch)
    pairs = tuple(tiny_models.default_pairs(loaded.tiny.shape.n_layer, start))
    tokens = run(prompt(100, 4))
    full = native(loaded, Config(n_ubatch=16), tokens)
    everything = native(loaded, Config(pairs, retain=1.0, pool_type="f16", n_ubatch=16), tokens)
    assert nmse(everything, full) <= ROUNDING
    nothing = native(loaded, Config(pairs, retain=0.0, n_ubatch=16), tokens)
    assert nmse(nothing, full) > 1e3 * ROUNDING

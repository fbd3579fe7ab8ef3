"""Several sequences in one cache."""

from __future__ import annotations

import numpy as np
import pytest

from oracle.cells import Token
from oracle.model import Config
from support.bounds import F16_BOUND
from support.contexts import interleaved, nmse, run
from support.loaded import Loaded
from support.oracle_runs import clear_cut, native
from support.tiny_models import prompt


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("merged", [True, False])
def test_sequences_never_see_each_other(random_model: Loaded, unified: bool, merged: bool) -> None:
    """Other tokens in other sequences change nothing, to the last bit.

    In a unified cache neighbouring cells share a slot whichever sequence they belong to. There the choice of retained
    tokens, and nothing else, may depend on other sequences.
    """
    pairs = random_model.pairs if merged else ()
    config = Config(pairs, retain=0.0 if unified else 0.1, n_ubatch=16, n_seq_max=4, unified=unified)
    first = prompt(40, 6)
    results = []
    for seed in (7, 8):
        tokens = interleaved([first, *(prompt(40, 10 * seed + i) for i in range(3))])
        results.append(
            native(random_model, config, tokens)[[i for i, token in enumerate(tokens) if token.seq == 0]]
        )
    assert np.array_equal(results[0], results[1])


def test_sequences_with_shared_slots_match_the_oracle(random_model: Loaded) -> None:
    """In a unified cache the tokens of one sequence displace retained ones of another as the oracle says."""
    config = Config(random_model.pairs, retain=0.1, n_ubatch=16, n_seq_max=4)
    lengths = (10, 25, 50, 60)

    def make(seed: int) -> list[Token]:
        tokens = [token for i, n in enumerate(lengths) for token in run(prompt(n, 10 * seed + i), seq=i)]
        return sorted(tokens, key=lambda token: (token.pos // 5, token.seq))

    tokens, expected = clear_cut(random_model, config, make)
    assert nmse(native(random_model, config, tokens), expected) <= F16_BOUND


def test_tokens_of_uneven_sequences_per_stream(random_model: Loaded) -> None:
    config = Config(random_model.pairs, retain=0.1, n_ubatch=16, n_seq_max=3, unified=False)

    def make(seed: int) -> list[Token]:
        return [token for i, n in enumerate((5, 40, 23)) for token in run(prompt(n, 10 * seed + i), seq=i)]

    tokens, expected = clear_cut(random_model, config, make)
    assert nmse(native(random_model, config, tokens), expected) <= F16_BOUND

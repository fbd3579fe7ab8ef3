"""Saved states of model families: of our cache together with windows and recurrent states, all of it or nothing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp.native import binding
from oracle.model import Config
from support.contexts import Context, as_buffer, llama_cpp, nmse, repeated, run
from support.family_caches import KEPT_BOUND, LoadedFamily
from support.tiny_models import prompt

PARTIAL = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: windows and recurrent states alone


@pytest.mark.parametrize("name", ["gemma3", "gemma4-shared", "gpt-oss", "qwen35", "falcon-h1", "qwen2vl"])
def test_states_continue(families: Callable[[str], LoadedFamily], tmp_path: Path, name: str) -> None:
    """A saved context, and a saved sequence, continue elsewhere; what is damaged is refused and changes nothing."""
    loaded = families(name)
    config = loaded.coded(Config(n_seq_max=2, n_ubatch=16, n_cells=512), tmp_path / "plan.gguf", window=5)
    tokens = run(prompt(10, 3), 60)
    with (
        Context.of(loaded.model, config, swa_full=False) as ctx,
        Context.of(loaded.model, config, swa_full=False) as other,
    ):
        ctx.decode(run(prompt(60, 1)))
        whole, one = ctx.state(), ctx.seq_state(0)
        expected = repeated(ctx.decode, tokens, 1)
        other.decode(run(prompt(35, 5)))
        damaged = bytearray(whole)
        damaged[-5] ^= 1
        assert not other.restore(bytes(damaged))
        assert not other.restore_seq(one[: len(one) // 2], 1)
        assert other.positions(0)[1] == 34
        assert other.restore(whole)
        assert nmse(repeated(other.decode, tokens, 1), expected) <= KEPT_BOUND
        other.clear()
        other.decode(run(prompt(35, 5), seq=1))
        assert other.restore_seq(one, 0)
        assert nmse(repeated(other.decode, tokens, 1), expected) <= KEPT_BOUND
        assert other.positions(1)[1] == 34


@dataclass(frozen=True)
class Refused:
    """A state of sequence 1 that a context must refuse, and a part of the reason."""

    state: bytes
    reason: str


def cut(state: bytes) -> bytes:
    return state[: len(state) // 2]


def damaged(state: bytes) -> bytes:
    return state[:-5] + bytes([state[-5] ^ 1]) + state[-4:]


def states_to_refuse(loaded: LoadedFamily, folder: Path, config: Config) -> list[Refused]:
    """States of a cache of this configuration that are damaged, or of caches of others."""
    with Context.of(loaded.model, config, swa_full=False) as ctx:
        ctx.decode(run(prompt(30, 9)))
        state = ctx.seq_state(0)
    found = [Refused(damaged(state), "checksum differs"), Refused(cut(state), "")]
    like = Config(n_ubatch=16, n_seq_max=2, n_cells=config.n_cells, unified=config.unified)
    other = loaded.coded(like, folder / "other.gguf")
    with Context.of(loaded.model, other, swa_full=False) as ctx:
        ctx.decode(run(prompt(30, 9)))
        found.append(Refused(ctx.seq_state(0), "a window of 0 tokens, here 8"))
    twin = LoadedFamily(loaded.family, folder / "twin.gguf", seed=1)
    same = twin.coded(like, folder / "same.gguf", window=5)
    with Context.of(twin.model, same, swa_full=False) as ctx:
        ctx.decode(run(prompt(30, 9)))
        found.append(Refused(ctx.seq_state(0), "another model"))
    twin.model.close()
    return found


@pytest.mark.parametrize("unified", [True, False])
@pytest.mark.parametrize("name", ["gemma3", "qwen35", "falcon-h1", "qwen3vl"])
def test_a_refused_state_changes_nothing(
    families: Callable[[str], LoadedFamily], tmp_path: Path, name: str, unified: bool
) -> None:
    """Nor does it part sequences that share their cells, in a cache that has no room for both apart."""
    loaded = families(name)
    config = loaded.coded(
        Config(n_ubatch=16, n_seq_max=2, n_cells=256, unified=unified), tmp_path / "plan.gguf", window=5
    )
    with (
        Context.of(loaded.model, config, swa_full=False) as ctx,
        Context.of(loaded.model, config, swa_full=False) as untouched,
    ):
        for one in (ctx, untouched):
            one.decode(run(prompt(150)))
            one.seq_cp(0, 1)
        before = ctx.positions(0), ctx.positions(1)
        for refused in states_to_refuse(loaded, tmp_path, config):
            assert not ctx.restore_seq(refused.state, 1)
            assert refused.reason in binding.last_error()
            assert (ctx.positions(0), ctx.positions(1)) == before
        tokens = run(prompt(10, 2), 150, seq=1)
        assert np.array_equal(ctx.decode(tokens), untouched.decode(tokens))


def test_windows_that_do_not_fit_are_refused(families: Callable[[str], LoadedFamily], tmp_path: Path) -> None:
    """A whole state holds what a window has forgotten too, where its cache is longer than the other one's."""
    loaded = families("gemma3")
    config = loaded.coded(Config(n_ubatch=16, n_cells=512), tmp_path / "plan.gguf")
    with (
        Context.of(loaded.model, config, swa_full=True) as long,
        Context.of(loaded.model, config, swa_full=False) as short,
    ):
        long.decode(run(prompt(400)))
        short.decode(run(prompt(35, 5)))
        assert not short.restore(long.state())
        assert "400 tokens in sliding windows, but there is room for 256 only" in binding.last_error()
        assert short.positions(0) == (0, 34)
        # of one sequence, only what the windows still hold is saved
        assert short.restore_seq(long.seq_state(0), 0)
        assert short.positions(0)[1] == 399


def partial_state(ctx: Context) -> bytes:
    size = llama_cpp.llama_state_seq_get_size_ext(ctx.handle, 0, PARTIAL)
    buffer = (ctypes.c_uint8 * size)()
    return bytes(buffer[: llama_cpp.llama_state_seq_get_data_ext(ctx.handle, buffer, size, 0, PARTIAL)])


def restore_partial(ctx: Context, state: bytes) -> bool:
    return bool(llama_cpp.llama_state_seq_set_data_ext(ctx.handle, as_buffer(state), len(state), 0, PARTIAL))


@pytest.mark.parametrize("name", ["gemma3", "qwen35", "falcon-h1"])
def test_checkpoints_of_windows_and_states_bring_them_back(
    families: Callable[[str], LoadedFamily], tmp_path: Path, name: str
) -> None:
    """As llama.cpp's server takes them, to go back to an earlier token of a prompt."""
    loaded = families(name)
    config = loaded.coded(Config(n_ubatch=16, n_cells=512), tmp_path / "plan.gguf")
    tokens = run(prompt(10, 3), 60)
    with Context.of(loaded.model, config, swa_full=False) as ctx:
        ctx.decode(run(prompt(60, 1)))
        state = partial_state(ctx)
        expected = ctx.decode(tokens)
        for bad in (cut(state), damaged(state)):
            assert not restore_partial(ctx, bad)
            assert ctx.positions(0)[1] == 69
        assert restore_partial(ctx, state)
        assert ctx.seq_rm(0, 60, -1)
        assert nmse(ctx.decode(tokens), expected) <= KEPT_BOUND

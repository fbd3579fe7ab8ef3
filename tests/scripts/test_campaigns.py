"""scripts/campaigns: a short run of each campaign finds nothing, and what is wrong is found."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from campaigns.__main__ import ROOT, main
from campaigns.files import READER_NAMES
from campaigns.members import Library, OracleMember
from campaigns.mutations import gguf_fields, mutated
from campaigns.operations import Rules
from campaigns.options import Outcome
from campaigns.state_parts import with_right_checksums
from campaigns.walks import Setup, walk
from oracle.model import Config
from support import tiny_models
from support.bounds import F16_BOUND
from support.contexts import Context, run
from support.family_caches import LoadedFamily
from support.loaded import Loaded
from support.paths import required
from support.plans import ALL_PAIRS, coded
from support.tiny_models import prompt


def campaign(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("model", "steps"), [("oracle", "120"), ("families", "250")])
def test_walks_find_nothing(capsys: pytest.CaptureFixture[str], model: str, steps: str) -> None:
    code, found = campaign(capsys, "walks", "--model", model, "--steps", steps)
    assert found["findings"] == []
    assert code == 0
    assert found["counts"]["steps"] >= int(steps)  # type: ignore[index]
    assert found["largest"]


@pytest.mark.parametrize("model", ["oracle", "families"])
def test_walks_on_the_cuda_kernels_find_nothing(model: str) -> None:
    """In a process of its own, as the backend is unloaded at its end."""
    required("MINICACHE_CUDA_ON_CPU", "libminicache-cuda-on-cpu.so, of a build with MINICACHE_TESTS=ON")
    options = ["walks", "--model", model, "--device", "cuda-on-cpu", "--steps", "40", "--json"]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "campaigns", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (0, []), done.stderr[-500:]


@pytest.mark.parametrize("reader", READER_NAMES)
def test_changed_files_do_no_harm(capsys: pytest.CaptureFixture[str], reader: str) -> None:
    code, found = campaign(capsys, "files", "--reader", reader, "--steps", "100")
    assert found["findings"] == []
    assert code == 0
    counts = found["counts"]
    assert counts[f"files of {reader}"] == 100  # type: ignore[index]
    # if all were refused, little behind the first check would have been tried
    assert counts[f"files of {reader}, refused"] < 100  # type: ignore[index]


def wrong(config: Config, kind: str) -> Config:
    changes: dict[str, dict[str, object]] = {
        "other tokens are retained": {"keep_most_similar": True},
        "another split": {"n_ubatch": 9},
        "a longer window": {"window": 6},
    }
    return replace(config, **changes[kind])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["", "other tokens are retained", "another split", "a longer window"])
def test_a_wrong_oracle_is_noticed(random_model: Loaded, kind: str) -> None:
    """The finding names the seed, with which it happens again."""
    config = Config(ALL_PAIRS, retain=0.1, window=5, pool_type="f16", n_ubatch=16, n_seq_max=2)
    rules = Rules(2, True, config.n_cells)
    found = []
    for _ in range(2):
        outcome = Outcome()
        setup = Setup(
            "a test",
            "a test",
            rules,
            Library(lambda: Context.of(random_model.model, config)),
            OracleMember(random_model.tiny, wrong(config, kind) if kind else config),
            F16_BOUND,
            F16_BOUND,
        )
        walk(setup, 3, outcome)
        found.append(outcome.findings)
    assert found[0] == found[1]
    assert len(found[0]) == (1 if kind else 0)
    if kind:
        assert found[0][0].seed == 3
        assert found[0][0].what.startswith("an error of")


def test_checksums_that_are_made_right_are_right(load: Callable[..., Loaded], tmp_path: Path) -> None:
    """A state that was changed only in its checksums is accepted again, with a frame and without."""
    loaded = load(tiny_models.random_model)
    family = LoadedFamily("gemma3", tmp_path / "gemma3.gguf")
    config = Config(n_ubatch=16)
    for model, made in (
        (loaded.model, coded(loaded, replace(config, groups=ALL_PAIRS), tmp_path / "plain.plan.gguf")),
        (family.model, family.coded(config, tmp_path / "family.plan.gguf")),
    ):
        with Context.of(model, made) as ctx:
            ctx.decode(run(prompt(20)))
            for whole, state in ((True, ctx.state()), (False, ctx.seq_state(0))):
                at = state.find(b"MCKV") + 72
                damaged = state[:at] + bytes(8) + state[at + 8 :]
                take = ctx.restore if whole else lambda data: ctx.restore_seq(data, 0)
                assert not take(damaged)
                assert with_right_checksums(damaged) == state
                assert take(with_right_checksums(damaged))


def test_changes_are_of_fields_and_repeat_with_their_seed(random_model: Loaded) -> None:
    data = random_model.path.read_bytes()[:20_000]
    fields = gguf_fields(random_model.path.read_bytes())
    assert {"number", "length"} == {one.kind for one in fields}
    assert all(one.at + one.size <= len(data) for one in fields)
    changed = [mutated(random.Random(seed), data, fields) for seed in range(20)]
    assert changed == [mutated(random.Random(seed), data, fields) for seed in range(20)]
    assert len(set(changed)) > 15
    assert data not in changed


@pytest.mark.parametrize(
    "arguments",
    [
        ["walks", "--steps", "0"],
        ["files", "--minutes", "nan"],
        ["walks", "--seed", "-1"],
        ["soak", "--tokens", "0"],
        ["threads", "--threads", "0"],
    ],
)
def test_bad_numbers_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["walks"], ["files"], ["faults"], ["soak"], ["threads"]):
        with pytest.raises(SystemExit, match="0"):
            main([*arguments, "--help"])
        assert "python scripts/campaigns" in capsys.readouterr().out

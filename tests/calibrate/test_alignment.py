"""`minicache calibrate --mode aligned`: the basis matrices that it fits and the plan that it writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minicache_cpp import MiniCache, cli
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.calibrate import alignment
from oracle.model import Config
from support import tiny_models
from support.contexts import Context, nmse, run
from support.loaded import Loaded
from support.oracle_runs import native
from support.tiny_models import prompt


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 6000 bytes, each of which is a token of the tiny models."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    letters = np.random.default_rng(8).integers(33, 123, 6000)
    path.write_text("".join(map(chr, letters)), encoding="utf-8")
    return path


def test_procrustes_finds_the_turn() -> None:
    rng = np.random.default_rng(0)
    x_a = rng.standard_normal((200, 3, 16)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((3, 16, 16)))[0]
    longer = rng.uniform(0.5, 2, (200, 3, 1))
    x_b = (np.einsum("hij,nhj->nhi", turn, x_a) * longer).astype(np.float32)
    found = alignment.procrustes(x_a, x_b)
    assert np.allclose(found, turn.swapaxes(1, 2), atol=1e-5)
    assert alignment.distance(x_a, np.einsum("hij,nhj->nhi", found, x_b)) < 1e-3


def test_no_other_turn_is_nearer() -> None:
    rng = np.random.default_rng(1)
    x_a, x_b = rng.standard_normal((2, 100, 1, 8)).astype(np.float32)
    found = alignment.procrustes(x_a, x_b)[0]
    assert np.allclose(found @ found.T, np.eye(8), atol=1e-5)

    def cosine(matrix: np.ndarray) -> float:  # type: ignore[type-arg]
        u_a, u_b = (x[:, 0] / np.linalg.norm(x[:, 0], axis=1, keepdims=True) for x in (x_a, x_b))
        return float((u_a * (u_b @ matrix.T)).sum())

    for _ in range(50):
        nudge = np.linalg.qr(np.eye(8) + 0.1 * rng.standard_normal((8, 8)))[0]
        nudge *= np.sign(np.diag(nudge))
        assert cosine(nudge @ found) < cosine(found)


def test_layers_that_are_zero_get_orthogonal_matrices() -> None:
    zero = np.zeros((10, 2, 8), np.float32)
    found = alignment.procrustes(zero, zero)
    assert np.allclose(found @ found.swapaxes(1, 2), np.eye(8), atol=1e-5)


def test_the_command_undoes_a_turn(
    load: Callable[..., Loaded], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded, plan = load(tiny_models.turned_model), tmp_path / "plan.gguf"
    arguments = ["calibrate", loaded.path, "--mode", "aligned", "--retain", "0", "--text", text, "-o", plan]
    assert cli.main([*map(str, arguments), "--json", "--tokens", "4000"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [tuple(row["layers"]) for row in found["pairs"]] == list(loaded.pairs)
    for row in found["pairs"]:
        assert min(row["distance_before"]) > 0.3
        assert max(row["distance_after"]) < 0.01

    tokens = run(prompt(60))
    full = native(loaded, Config(n_ubatch=7), tokens)
    results = {}
    for name, minicache in (("aligned", MiniCache(plan=plan)), ("slerp", MiniCache(retain=0))):
        with Context(loaded.model, minicache, n_ubatch=7) as ctx:
            results[name] = nmse(ctx.decode(tokens), full)
    assert results["aligned"] < 1e-3 < results["slerp"]


def test_the_plan_has_the_settings(
    load: Callable[..., Loaded], text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load(tiny_models.random_model)
    paths = [tmp_path / "first.gguf", tmp_path / "second.gguf"]
    for path in paths:
        arguments = ["--mode", "aligned", "--start", "0", "--t", "0.4", "--retain", "0.1", "--type", "q8_0"]
        arguments += ["--window", "24"]
        given = ["calibrate", loaded.path, *arguments, "--text", text, "--tokens", 1024, "-o", path]
        assert cli.main([*map(str, given)]) == 0
    assert "layers    K before" in capsys.readouterr().out
    assert paths[0].read_bytes() == paths[1].read_bytes()
    plan = PlanFile.open(paths[0]).plan
    assert (plan.mode, plan.t, plan.type_k, plan.type_v) == ("aligned", pytest.approx(0.4), "q8_0", "q8_0")
    assert (plan.retain, plan.pool_type, plan.rope_block) == (pytest.approx(0.1), "q8_0", 0)
    assert plan.window == 24
    assert [(*group.layers, group.n_basis_k) for group in plan.groups] == [(0, 1, 1), (2, 3, 1), (4, 5, 1)]
    with Context(loaded.model, MiniCache(plan=paths[0]), n_ubatch=16) as ctx:
        assert np.isfinite(ctx.decode(run(prompt(60)))).all()
        report = ctx.report()
    assert (report.mode, report.t, report.fixed_bytes >= sum(group.basis_bytes for group in plan.groups)) == (
        "aligned",
        pytest.approx(0.4),
        True,
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--mode", "aligned"], "needs -o"),
        (["--mode", "aligned", "-o", "PLAN", "--ratio", "5"], "--ratio is for codes"),
        (["--start", "0", "-o", "PLAN"], "--start goes with --mode aligned"),
        (["--mode", "aligned", "-o", "PLAN", "--t", "2"], "out of range"),
        (["--mode", "aligned", "-o", "PLAN", "--start", "5"], "no two neighbouring layers"),
    ],
)
def test_contradictory_options_are_refused(
    random_model: Loaded,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    plan = tmp_path / "plan.gguf"
    given = [str(plan) if one == "PLAN" else one for one in arguments]
    assert cli.main(["calibrate", str(random_model.path), "--tokens", "512", *given]) == 2
    assert reason in capsys.readouterr().err
    assert not plan.exists()

"""Models in true shapes: the bytes of their caches, codes as long as their heads make them, and what reports say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from minicache_cpp.cache.plan_file import decoded_plan
from minicache_cpp.cache.size import bytes_beside
from minicache_cpp.inspect import inspect_model
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.native.model_shape import model_shape
from oracle.model import Config
from support.contexts import Context, run
from support.family_caches import LoadedFamily, assert_agrees
from support.scenarios import Memory, Result
from support.tiny_models import prompt
from support.true_shapes import TRUE_SHAPES, TrueShape

N_CTX = 32768  # of the bytes that `inspect` tells
N_CELLS, N_UBATCH = 1024, 16  # of contexts
# exact codes give up to 4e-4; with 16 of a code's coefficients left out, it is 1.6e-2 and more
BOUND = 1.5e-3
F16 = ("f16", "f16")


@dataclass(frozen=True)
class Coded:
    """A loaded model, and a configuration in which all layers that grow are coded in twos."""

    true: TrueShape
    loaded: LoadedFamily
    config: Config


@pytest.fixture(scope="module", params=TRUE_SHAPES, ids=str)
def coded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coded]:
    true: TrueShape = request.param
    folder = tmp_path_factory.mktemp("true-shapes")
    model, plan = folder / "model.gguf", folder / "plan.gguf"
    loaded = LoadedFamily(true.family, model)
    config = Config(n_ubatch=N_UBATCH, n_cells=N_CELLS)
    yield Coded(true, loaded, loaded.coded(config, plan, true.twos, window=8, alike=True))
    loaded.model.close()
    # they are large, and pytest keeps its folders
    for path in (model, plan):
        path.unlink()


def whole_steps(n_tokens: int) -> int:
    """The cells of so many tokens, of which there are multiples of 256."""
    return -(-n_tokens // 256) * 256


def test_the_shape_gives_the_bytes(coded: Coded) -> None:
    """Those that grow, for each token, and those of windows and states beside them."""
    true, path = coded.true, coded.loaded.path
    heads = true.family.shape
    assert path.stat().st_size <= 60e6
    shape = model_shape(read_gguf(path))
    assert not shape.unknown
    kinds = ["grows" if layer.grows else layer.kind for layer in shape.layers]
    assert kinds == true.kinds("grows")
    grow = {(one.n_head_kv, one.head_size_k, one.head_size_v, one.n_rot) for one in shape.layers if one.grows}
    assert grow == {(heads.n_head_kv, heads.head_size, heads.head_size, true.n_rot)}

    (row,) = inspect_model(path, N_CTX, ["f16"])["rows"]
    beside = bytes_beside(shape, F16, N_CTX)
    assert row["bytes"] - beside == true.f16_bytes * N_CTX
    # a window has room for a ubatch of 512 tokens too
    assert beside == true.window_bytes * whole_steps(true.window + 512) + true.state_bytes


def test_codes_agree_with_upstream(coded: Coded) -> None:
    """A prompt in several ubatches, then one token at a time; of earlier ubatches all but eight tokens are codes."""

    def read(m: Memory, seed: int) -> Result:
        more = run(prompt(5, seed + 1), 40)
        return [m.decode(run(prompt(40, seed))), *(m.decode([token]) for token in more)]

    assert_agrees(coded.loaded, coded.config, read, BOUND, swa_full=False)


def test_the_report_says_what_grows(coded: Coded) -> None:
    true, config = coded.true, coded.config
    with Context.of(coded.loaded.model, config, swa_full=False) as ctx:
        report = ctx.report()
    assert report.active
    assert report.groups == list(true.twos)
    assert [layer.kind for layer in report.layers] == true.kinds("merged")
    assert report.n_cells == N_CELLS

    plan = decoded_plan(read_gguf(config.plan))
    code_bytes = sum(group.token_bytes for group in plan.groups)
    # a byte for each number, and one for each layer's magnitude
    assert code_bytes == true.f16_bytes // 2 + len(true.family.grows) * true.family.shape.n_head_kv * 2
    # the index of the retained tokens, of which there are none, has two running means for each group
    assert report.bytes_index == 16 * len(true.twos)
    assert report.bytes - report.fixed_bytes - report.bytes_index == code_bytes * N_CELLS
    assert report.ratio == pytest.approx(true.f16_bytes / code_bytes, rel=1e-4)

    assert report.bytes_swa == true.window_bytes * report.n_cells_swa
    assert report.n_cells_swa == (min(N_CELLS, whole_steps(true.window + N_UBATCH)) if true.window else 0)
    assert report.bytes_state == true.state_bytes
    assert bool(report.bytes_swa) == bool(true.family.window)
    assert bool(report.bytes_state) == bool(true.family.recurrent)

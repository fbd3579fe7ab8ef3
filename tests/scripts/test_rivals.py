"""scripts/rivals: the float32 model beside llama.cpp, plans beside the runtime, and each method by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.cache.plan_file import PlanFile
from minicache_cpp.cache.size import plan_bytes, plan_fixed_bytes
from minicache_cpp.calibrate.plain_fit import hadamard
from minicache_cpp.modelfile.gguf_file import read_gguf
from minicache_cpp.modelfile.shape import Layer, ModelShape
from oracle.cells import Token
from oracle.model import Config
from rivals import kvarn, turboquant
from rivals.__main__ import main
from rivals.kivi import Kivi, round_groups
from rivals.kvarn import KVarN
from rivals.method import Method
from rivals.methods import method_of
from rivals.plain_types import PlainType
from rivals.simulated_cache import SimulatedCache
from rivals.transformer import read_text
from rivals.turboquant import TurboQuant
from rivals.weights import read_weights
from support import plans, tiny_models
from support.bounds import CODE_BOUND, F16_BOUND
from support.contexts import nmse
from support.loaded import Loaded
from support.oracle_runs import native
from support.tiny_models import prompt

Floats = npt.NDArray[np.float32]

SHAPE = ModelShape("llama", 1024, 2, [Layer(2, 64, 64, n_rot=64)] * 3)
# numbers of K and V of a token, and the bytes of them in f16
NUMBERS = 3 * 2 * 2 * 64


def simulated(path: Path, tokens: list[int], block: int, name: str) -> Floats:
    """The logits of every token with the cache of a method, read `block` tokens at a time."""
    file = read_gguf(path)
    weights = read_weights(file)
    cache = SimulatedCache(weights.shape.layers, len(tokens), method_of(name, file, weights, len(tokens)))
    return np.concatenate([logits for _, logits in read_text(weights, tokens, block, cache, 0)])


def consecutive(tokens: list[int]) -> list[Token]:
    return [Token(token, position, 0) for position, token in enumerate(tokens)]


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_the_model_agrees_with_llama_cpp(load: Callable[..., Loaded], arch: str) -> None:
    loaded = load(tiny_models.random_model, arch=arch)
    tokens = prompt(96)
    wanted = native(loaded, Config(n_ubatch=16), consecutive(tokens))
    assert nmse(simulated(loaded.path, tokens, 16, "f16"), wanted) < F16_BOUND


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
@pytest.mark.parametrize("window", [0, 16])
def test_a_plan_restores_what_the_runtime_does(
    load: Callable[..., Loaded], tmp_path: Path, arch: str, window: int
) -> None:
    loaded = load(tiny_models.random_model, arch=arch)
    tokens = prompt(96)
    config = Config(((0, 1), (2, 3), (4, 5)), n_ubatch=16, window=window, pool_type="f16")
    config = plans.coded(loaded, config, tmp_path / "coded.plan.gguf")
    wanted = native(loaded, config, consecutive(tokens))
    found = simulated(loaded.path, tokens, 16, f"plan:{config.plan}")
    assert nmse(found, wanted) < CODE_BOUND
    # the first block has no past, and what comes later would be far off with another cache
    assert nmse(simulated(loaded.path, tokens, 16, "f16"), wanted) > 10 * CODE_BOUND


def test_a_plan_has_the_bytes_of_its_cache(random_model: Loaded, tmp_path: Path) -> None:
    config = Config(((0, 1), (2, 3)), n_ubatch=16, window=16, plain=((4, "q8_0", "q4_0"),))
    config = plans.coded(random_model, config, tmp_path / "coded.plan.gguf")
    file = read_gguf(random_model.path)
    weights = read_weights(file)
    method = method_of(f"plan:{config.plan}", file, weights, 256)
    plan = PlanFile.open(config.plan).plan
    # the cache's arrays are aligned, and the window's index has some bytes more
    assert method.n_bytes(256, 0) == pytest.approx(plan_bytes(weights.shape, plan, 256), abs=200)
    assert method.n_bytes(256, 0) - 256 * method.token_bytes == pytest.approx(
        plan_fixed_bytes(weights.shape, plan, 256), abs=200
    )


def test_plans_that_are_refused(random_model: Loaded, load: Callable[..., Loaded], tmp_path: Path) -> None:
    config = plans.coded(random_model, Config(((0, 1),), retain=0.1), tmp_path / "retain.plan.gguf")
    other = load(tiny_models.random_model, seed=1)
    for path, reason in ((random_model.path, "retains tokens"), (other.path, "for another model")):
        file = read_gguf(path)
        with pytest.raises(MiniCacheError, match=reason):
            method_of(f"plan:{config.plan}", file, read_weights(file), 256)


def test_models_that_are_refused(load: Callable[..., Loaded], tmp_path: Path) -> None:
    with pytest.raises(MiniCacheError, match="is a refact model; the simulation covers llama and qwen2"):
        read_weights(read_gguf(load(tiny_models.random_model, arch="refact").path))
    tiny = tiny_models.random_model()
    gate = np.zeros((2, tiny.shape.n_embd), np.float32)
    strange = replace(tiny, weights=tiny.weights | {"blk.0.ffn_gate_inp.weight": gate})
    with pytest.raises(MiniCacheError, match=r"has a tensor blk\.0\.ffn_gate_inp\.weight"):
        read_weights(read_gguf(strange.write(tmp_path / "strange.gguf")))


# the cache


def filled(method: Method, n_tokens: int, block: int, tail: int = 0) -> SimulatedCache:
    """A cache that has read random K and V."""
    rng = np.random.default_rng(3)
    cache = SimulatedCache(SHAPE.layers, n_tokens, method, tail)
    for _ in range(n_tokens // block):
        for layer in range(len(SHAPE.layers)):
            k, v = rng.standard_normal((2, block, 2, 64)).astype(np.float32)
            cache.add(layer, k, k, v)
        cache.end_block()
    return cache


def exact_tokens(cache: SimulatedCache, kind: str, layer: int = 0) -> list[int]:
    """The tokens that the cache gives back in f16."""
    computed = cache.computed[kind, layer].astype(np.float16).astype(np.float32)  # type: ignore[index]
    same = (cache.seen[kind, layer] == computed).all(axis=(1, 2))  # type: ignore[index]
    return np.flatnonzero(same).tolist()


@pytest.mark.parametrize(
    ("method", "tail", "exact_k", "exact_v"),
    [
        (PlainType(SHAPE, "q4_0"), 0, [], []),
        (PlainType(SHAPE, "q4_0"), 20, range(300, 320), range(300, 320)),
        # K waits until there are 128 tokens, V keeps the latest 128
        (Kivi(SHAPE, residual=128), 0, range(256, 320), range(192, 320)),
        (Kivi(SHAPE, residual=32), 40, range(256, 320), range(280, 320)),
        # whole tiles of 128 tokens are coded
        (KVarN(SHAPE, sinks=0), 0, range(256, 320), range(256, 320)),
        (KVarN(SHAPE, sinks=0), 80, range(128, 320), range(128, 320)),
        (KVarN(SHAPE, sinks=128), 0, [*range(128), *range(256, 320)], [*range(128), *range(256, 320)]),
        (KVarN(SHAPE, sinks=128), 200, range(320), range(320)),
        (TurboQuant(SHAPE), 8, range(312, 320), range(312, 320)),
    ],
)
def test_which_tokens_stay_exact(
    method: Method, tail: int, exact_k: Sequence[int], exact_v: Sequence[int]
) -> None:
    cache = filled(method, 320, 32, tail)
    for layer in range(3):
        assert exact_tokens(cache, "k", layer) == list(exact_k)
        assert exact_tokens(cache, "v", layer) == list(exact_v)


def test_without_a_method_nothing_is_lost() -> None:
    cache = SimulatedCache(SHAPE.layers, 8)
    k, v = np.random.default_rng(0).standard_normal((2, 8, 2, 64)).astype(np.float32)
    for layer in range(3):
        cache.add(layer, k, k, v)
    cache.end_block()
    assert (cache.read(2)[0] == k).all() and (cache.read(2)[1] == v).all()


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        (PlainType(SHAPE, "f16"), 16),
        # 32 numbers have a scale of 16 bits
        (PlainType(SHAPE, "q8_0"), 8.5),
        (PlainType(SHAPE, "q4_0"), 4.5),
        # 32 numbers have a step and a least number
        (Kivi(SHAPE, bits=2), 3),
        (Kivi(SHAPE, bits=4), 5),
        # a tile of K has 2 numbers for each of 64 channels and 1 for each of 128 tokens: half a bit for each number;
        # one of V has 1 for each channel and 2 for each token: 5/8 of a bit
        (KVarN(SHAPE, k=4, v=2), (4.5 + 2.625) / 2),
        # V has a length for 64 numbers, K two
        (TurboQuant(SHAPE, k=4, v=4), (4.5 + 4.25) / 2),
        (TurboQuant(SHAPE, k=3, v=2, qjl=0), (3.25 + 2.25) / 2),
    ],
)
def test_bytes_of_a_token(method: Method, bits: float) -> None:
    assert method.token_bytes == NUMBERS * bits / 8


def test_bytes_of_everything() -> None:
    f16 = NUMBERS * 2
    assert PlainType(SHAPE, "q4_0").n_bytes(1000, 100) == 900 * f16 * 4.5 / 16 + 100 * f16
    # of 1000 tokens 992 of K and 968 of V are coded
    kivi = 992 * f16 / 2 * 3 / 16 + 8 * f16 / 2 + 968 * f16 / 2 * 3 / 16 + 32 * f16 / 2
    assert Kivi(SHAPE).n_bytes(1000, 0) == kivi
    # the first 128 tokens and the last 104 are not
    assert KVarN(SHAPE).n_bytes(1000, 0) == 768 * KVarN(SHAPE).token_bytes + 232 * f16
    # two matrices of 64 x 64, 8 levels for K and 16 for V
    assert TurboQuant(SHAPE).n_bytes(0, 0) == 4 * (2 * 64**2 + 8 + 16)


# the quantizers


def test_kivi_rounds_between_least_and_largest() -> None:
    x = np.array([[-1, 0.4, 0.6, 2], [5, 5, 5, 5]], np.float32)
    # steps of 1 from -1 on; equal numbers have no step
    assert round_groups(x, 2).tolist() == [[-1, 0, 1, 2], [5, 5, 5, 5]]


def test_kivi_groups_tokens_of_k_and_channels_of_v(rng: np.random.Generator) -> None:
    method = Kivi(SHAPE)
    channel, token = rng.uniform(1, 100, (1, 1, 2, 64)), rng.uniform(1, 100, (1, 32, 2, 1))
    # numbers of two sizes only, so that 1 bit would do: exact where a group has one channel, or one token
    signs = rng.choice([-1.0, 1.0], (1, 32, 2, 64))
    k, v = (np.asarray(x.astype(np.float16), np.float32) for x in (signs * channel, signs * token))
    np.testing.assert_allclose(method.restore("k", k, (0,), 0), k, rtol=2e-3)
    np.testing.assert_allclose(method.restore("v", v, (0,), 0), v, rtol=2e-3)
    assert np.abs(method.restore("k", v, (0,), 0) - v).mean() > 1
    assert np.abs(method.restore("v", k, (0,), 0) - k).mean() > 1


def test_kvarn_makes_rows_and_columns_vary_equally(rng: np.random.Generator) -> None:
    rows, columns = np.exp(rng.uniform(1, 3, (64, 1))), np.exp(rng.uniform(1, 3, (1, 128)))
    x = (rng.standard_normal((64, 128)) * rows * columns).astype(np.float32)
    # the default bound would stop scales that are small beside the others
    found_columns, found_rows = kvarn.balance(x, floor=-10)
    for axis in (0, 1):
        before, after = (tile.std(axis=axis, ddof=1) for tile in (x, x / found_columns / found_rows))
        assert before.max() / before.min() > 5
        assert after.max() / after.min() < 1.005


def test_kvarn_has_a_least_scale(rng: np.random.Generator) -> None:
    x = (rng.standard_normal((64, 128)) * 0.01).astype(np.float32)
    for floor in (-0.3, -1.0):
        assert kvarn.balance(x, floor)[0].min() >= np.exp(np.float32(floor))


def test_kvarn_by_hand() -> None:
    # a tile of two tokens of K: after the rotation one channel has 8 and 0, the others nothing
    method = KVarN(SHAPE, k=1, v=1, tile=2, sinks=0)
    x = np.zeros((1, 2, 2, 64), np.float32)
    x[0, 0] = 1
    assert hadamard(x, 64)[0, 0, 0, 0] == 8
    np.testing.assert_allclose(method.restore("k", x, (0,), 0), x, atol=1e-2)


def test_kvarn_keeps_the_size_of_tokens(rng: np.random.Generator) -> None:
    """What it is for: at 2 bits, a token that is ten times as long costs the others of its tile nothing."""
    x = rng.standard_normal((1, 128, 2, 64)).astype(np.float32)
    x[:, 5] *= 10
    others = np.arange(128) != 5

    def error(floor: float) -> float:
        restored = KVarN(SHAPE, k=2, v=2, sinks=0, floor=floor).restore("k", x, (0,), 0)
        return float(((restored - x)[:, others] ** 2).mean())

    # with scales of at least e^10 there is no balance, and the steps of a channel suit the long token
    assert error(-0.3) < error(9.99) / 5


# Max 1960, table I: the mean squared error of the best 2, 4, 8 and 16 levels for a Gaussian of variance 1
@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_lloyd_max_of_a_gaussian(bits: int, error: float) -> None:
    t = np.linspace(-8, 8, 100001)
    density = np.exp(-(t**2) / 2)
    levels = turboquant.lloyd_max(t, density, bits)
    nearest = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, t)]
    assert (density * (t - nearest) ** 2).sum() / density.sum() == pytest.approx(error, rel=1e-3)
    if bits == 2:
        np.testing.assert_allclose(levels, [-1.510, -0.4528, 0.4528, 1.510], atol=1e-3)


@pytest.mark.parametrize(("bits", "error"), [(1, 0.36), (2, 0.117), (3, 0.03), (4, 0.009)])
def test_turboquant_has_the_error_that_its_paper_states(
    rng: np.random.Generator, bits: int, error: float
) -> None:
    """The squared error of unit vectors, however few channels they have something in; the paper rounds down."""
    x = np.zeros((1, 4000, 1, 64), np.float32)
    x[..., :3] = rng.standard_normal((1, 4000, 1, 3))
    shape = replace(SHAPE, layers=[Layer(1, 64, 64)])
    restored = TurboQuant(shape, k=bits, v=bits, qjl=0).restore("v", x, (0,), 0)
    found = ((restored - x) ** 2).sum(axis=-1) / (x**2).sum(axis=-1)
    assert 0.9 * error < found.mean() < 1.2 * error


def test_turboquant_has_unbiased_inner_products(rng: np.random.Generator) -> None:
    x = rng.standard_normal(64).astype(np.float32)
    mean: dict[int, float] = {}
    for qjl in (0, 1):
        methods = (TurboQuant(SHAPE, k=2, v=2, qjl=qjl, seed=seed) for seed in range(400))
        found = [method.restore("k", x[None, None, None], (0,), 0)[0, 0, 0] @ x for method in methods]
        mean[qjl] = float(np.mean(found) / (x @ x))
    # with 2 bits and the least error, inner products are too small by that error; with one bit for signs they are not
    assert mean[0] == pytest.approx(1 - 0.117, abs=0.01)
    assert mean[1] == pytest.approx(1, abs=0.02)


def test_kvarn_needs_a_hadamard_matrix() -> None:
    with pytest.raises(MiniCacheError, match="the head size=96: it must be a power of two"):
        KVarN(replace(SHAPE, layers=[Layer(1, 96, 64)]))


# the command


def test_the_command(
    random_model: Loaded, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = plans.coded(random_model, Config(((0, 1),), window=8), tmp_path / "coded.plan.gguf")
    command = [str(random_model.path), "--text", str(text), "--ctx", "128", "--block", "16"]
    names = [
        "f16",
        "q8_0",
        "kivi:residual=32",
        "kvarn:tile=32,sinks=0",
        "turboquant:k=5",
        f"plan:{config.plan}",
    ]
    assert main([*command, "--json", "--config", *names]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ctx"], found["block"], found["tail"]) == (128, 16, 0)
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == names
    assert rows["f16"]["ratio"] == rows["f16"]["total_ratio"] == 1
    assert 0 <= rows["f16"]["kl_mean"] < 1e-5 < rows["q8_0"]["kl_mean"] < rows["turboquant:k=5"]["kl_mean"]
    assert rows["f16"]["ppl"] == pytest.approx(rows["f16"]["ppl_exact"], rel=1e-3)

    assert main([*command, "--tail", "128", "--config", "q4_0"]) == 0
    table = capsys.readouterr().out.splitlines()
    # all tokens are in the tail, so that the total is f16's, and so is the KL
    name, _, ratio, _, total, kl, *_ = table[1].split()
    assert (name, ratio, total, kl) == ("q4_0", "3.56", "1.00", "0.00000")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("kivy", "kivy is no method"),
        ("kivi:size=4", "size is no parameter of it; it has bits, group, residual"),
        ("kivi:bits=two", "'two' is no value of bits"),
        ("kivi:bits=9", "bits=9: it must be 1 to 8"),
        ("kivi:residual=100", "a multiple of group, 32"),
        ("kvarn:sinks=5", "a multiple of tile, 128"),
        ("turboquant:k=1", "k=1: it must be 2 to 8"),
        ("plan:none.plan.gguf", "does not exist"),
    ],
)
def test_names_that_are_refused(
    random_model: Loaded, text: Path, capsys: pytest.CaptureFixture[str], name: str, reason: str
) -> None:
    assert main([str(random_model.path), "--text", str(text), "--ctx", "64", "--config", name]) == 2
    assert reason in capsys.readouterr().err


def test_a_text_that_is_too_short(
    random_model: Loaded, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(random_model.path), "--text", str(text), "--ctx", "5000"]) == 2
    assert "too few for --ctx 5000" in capsys.readouterr().err

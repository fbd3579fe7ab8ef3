"""The Python API: settings, Llama with MiniCache, its report, saved states, and the kernels on arrays."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny_models

from minicache_cpp import CacheSpec, Llama, MiniCache, MiniCacheError, MiniCacheWarning, kernels
from minicache_cpp.cache.context_report import read_report
from minicache_cpp.kernels import Current, Retained
from minicache_cpp.native import binding, library

import llama_cpp  # isort: skip  (after minicache_cpp, whose library it is to load)

HEADER = Path(__file__).parent.parent / "native" / "ggml_minicache" / "llama" / "llama-minicache.h"
SETTINGS = {"n_ctx": 256, "n_batch": 128, "verbose": False, "n_threads": 1, "n_threads_batch": 1}
QUESTION = [{"role": "user", "content": "How are you?"}]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.random_model().write(tmp_path_factory.mktemp("models") / "random.gguf"))


@pytest.fixture(scope="module")
def parallel_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_models.parallel_model().write(tmp_path_factory.mktemp("models") / "parallel.gguf"))


def greedy(llm: Llama, n: int) -> list[int]:
    """Continue the context by its likeliest tokens."""
    tokens = []
    for _ in range(n):
        tokens.append(llm.sample(temp=0.0))
        llm.eval(tokens[-1:])
    return tokens


#
# settings
#


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"t": 1.5}, "[0, 1]"),
        ({"t": float("nan")}, "[0, 1]"),
        ({"retain": -0.1}, "[0, 1]"),
        ({"retain": "0.1"}, "[0, 1]"),
        ({"start": 1.0}, "[0, 1)"),
        ({"start": float("nan")}, "[0, 1)"),
        ({"start": -1}, "from 0"),
        ({"start": True}, "[0, 1)"),
        ({"pairs": []}, "sequence"),
        ({"pairs": 3}, "sequence"),
        ({"pairs": [(3,)]}, "sequence"),
        ({"pairs": [(-1, 0)]}, "sequence"),
        ({"pairs": [(3, 3)]}, "deeper"),
        ({"pairs": [(4, 3)]}, "deeper"),
        ({"pairs": [(2, 3), (3, 4)]}, "overlaps"),
        ({"type_k": "q4"}, "q4_0, q4_1"),
        ({"type_v": 8}, "q8_0"),
        ({"pool_type": "q4_0"}, "f16, q8_0, cache"),
        ({"window": -1}, "0 to 65536"),
        ({"window": 65537}, "0 to 65536"),
        ({"window": 0.5}, "0 to 65536"),
        ({"window": True}, "0 to 65536"),
        ({"strict": "yes"}, "True"),
        ({"plan": "model.plan.gguf"}, "does not exist"),
        ({"plan": 3}, "no path"),
    ],
)
def test_nonsense_settings_are_refused_with_the_valid_range(settings: dict[str, object], words: str) -> None:
    with pytest.raises(MiniCacheError, match=re.escape(words)):
        MiniCache(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        ("slerp", MiniCache()),
        ("slerp:", MiniCache()),
        ("slerp:start=0.25,t=0.5,retain=0.1,type=q4_0", MiniCache(0.25, None, 0.5, 0.1, "q4_0", "q4_0")),
        ("slerp:start=8,type_k=q8_0", MiniCache(start=8, type_k="q8_0")),
        ("slerp:pairs=8-9;11-13,type=q5_1,type_v=q4_1,pool=cache,strict=1",
         MiniCache(pairs=[(8, 9), (11, 13)], type_k="q5_1", type_v="q4_1", pool_type="cache", strict=True)),
        ("slerp:start=0", MiniCache(start=0)),
        ("slerp:retain=0,window=64", MiniCache(retain=0, window=64)),
        ("average:start=0,window=3", MiniCache(start=0, retain=0, window=3, mode="average")),
    ],
)  # fmt: skip
def test_a_spec_says_what_the_settings_say(spec: str, settings: MiniCache) -> None:
    assert MiniCache.parse(spec) == settings
    assert MiniCache.parse(settings.spec()) == settings
    assert CacheSpec.parse(spec).minicache == settings


@pytest.mark.parametrize("name", ["f16", "bf16", "q8_0", "q5_0", "q5_1", "q4_0", "q4_1", "iq4_nl"])
def test_a_cache_type_is_the_spec_of_a_plain_cache(name: str) -> None:
    assert CacheSpec.parse(name) == CacheSpec(name, name, None)


@pytest.mark.parametrize(
    "spec",
    ["", "q3", "merge:t=1", "slerp:t", "slerp:t=", "slerp:t=x", "slerp:speed=1", "slerp:t=0.5,t=0.6", "auto",
     "plan.gguf", "slerp:pairs=8", "slerp:pairs=8-", "slerp:start=2.0", "slerp:strict=2", "slerp:type=q3",
     "slerp:window=0.5", "slerp:window=-1"],
)  # fmt: skip
def test_a_wrong_spec_is_refused(spec: str) -> None:
    with pytest.raises(MiniCacheError):
        CacheSpec.parse(spec)


@pytest.mark.parametrize("retain", [0.0, 0.01, 0.05, 0.3, 0.4, 0.7, 1.0])
def test_the_budget_is_the_native_one(random_model: str, retain: float) -> None:
    with Llama(random_model, minicache=MiniCache(retain=retain), **SETTINGS) as llm:
        report = llm.kv_report()
    block = MiniCache(retain=retain).retain_block
    assert report.retained_max == (-(-256 // block) if block else 0)
    assert report.retain == pytest.approx(1 / block if block else 0)


#
# making contexts
#


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"minicache": "auto", "calibrate": "always"}, "'once' nor 'never'"),
        ({"minicache": "plan.gguf"}, "does not exist"),
        ({"minicache": 0.5}, "MiniCache"),
        ({"minicache": MiniCache(), "flash_attn": False}, "flash"),
        ({"minicache": MiniCache(type_k="q8_0"), "type_k": "q4_0"}, "q4_0"),
        ({"minicache": MiniCache(), "type_v": 8}, "q8_0"),
        ({"type_k": "q3_0"}, "q8_0"),
        ({"type_k": 999}, "q8_0 (8)"),
        ({"type_v": "q8_0"}, "flash_attn=True"),
        ({"minicache": MiniCache(start=6)}, "0 to 5"),
        ({"minicache": MiniCache(pairs=[(4, 6)])}, "0 to 5"),
        ({"minicache": MiniCache(start=5, strict=True)}, "strict"),
    ],
)
def test_what_cant_be_is_a_clear_error(random_model: str, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(MiniCacheError, match=re.escape(words)):
        Llama(random_model, **SETTINGS, **arguments)


def test_a_missing_model_is_llama_cpps_own_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        Llama(str(tmp_path / "none.gguf"), verbose=False)


def test_plain_cache_types_go_by_name_and_by_number(random_model: str) -> None:
    for types in ({"type_k": "q8_0", "type_v": "q4_0"}, {"type_k": 8, "type_v": 2}):
        with Llama(random_model, flash_attn=True, **types, **SETTINGS) as llm:
            report = llm.kv_report()
        assert (report.type_k, report.type_v, report.active) == ("q8_0", "q4_0", False)
        assert report.bytes == report.bytes_plain < report.bytes_f16


def test_none_is_plain_whatever_the_environment_says(
    random_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_MINICACHE", "start=0")
    with Llama(random_model, **SETTINGS) as llm:
        assert not llm.kv_report().active
    upstream = llama_cpp.Llama(random_model, flash_attn=True, **SETTINGS)
    assert read_report(upstream.ctx).active  # what this thread's next contexts do is the environment's again
    upstream.close()


def test_settings_do_not_outlast_their_context(random_model: str) -> None:
    with Llama(random_model, minicache=MiniCache(), **SETTINGS) as llm:
        assert llm.kv_report().active
    with pytest.raises(MiniCacheError):
        Llama(random_model, minicache=MiniCache(start=99), **SETTINGS)
    upstream = llama_cpp.Llama(random_model, **SETTINGS)
    assert not read_report(upstream.ctx).active
    upstream.close()


def test_threads_have_their_own_settings(random_model: str) -> None:
    wanted = [None, MiniCache(start=0), MiniCache(start=4), None, MiniCache(start=2)]
    found: list[object] = [None] * len(wanted)

    def make(i: int) -> None:
        with Llama(random_model, minicache=wanted[i], **SETTINGS) as llm:
            found[i] = llm.kv_report().pairs

    threads = [threading.Thread(target=make, args=(i,)) for i in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[], [(0, 1), (2, 3), (4, 5)], [(4, 5)], [], [(2, 3), (4, 5)]]


def test_a_sliding_window_model_is_plain_with_the_reason(tmp_path: Path) -> None:
    model = str(tiny_models.sliding_window_model(tmp_path / "window.gguf"))
    with Llama(model, minicache=MiniCache(), **SETTINGS) as llm:
        report = llm.kv_report()
    assert not report.active
    assert report.note
    assert "sliding" in str(report)
    with pytest.raises(MiniCacheError):
        Llama(model, minicache=MiniCache(strict=True), **SETTINGS)


#
# report
#


@pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")
def test_the_report_adds_up(random_model: str) -> None:
    settings = MiniCache(start=2, retain=0.1, type_k="q8_0", type_v="q4_0")
    with Llama(random_model, minicache=settings, **SETTINGS) as llm:
        before = llm.kv_report()
        llm.eval(tiny_models.prompt(100))
        report = llm.kv_report()
    assert before.bytes == report.bytes  # allocated once
    assert report.bytes == (
        report.bytes_directions + report.bytes_magnitudes + report.bytes_pool + report.bytes_index
        + report.bytes_unmerged + report.fixed_bytes
    )  # fmt: skip
    assert report.bytes_f16 == 6 * 256 * 2 * 64 * 2
    assert report.bytes_directions == 2 * 256 * 64 * (34 + 18) / 32
    assert report.bytes_magnitudes == 2 * 256 * 4 * 2 * 2
    assert report.ratio == pytest.approx(report.bytes_f16 / (report.bytes - report.fixed_bytes))
    assert report.total_ratio == pytest.approx(report.bytes_f16 / report.bytes)
    assert report.bytes == sum(layer.bytes for layer in report.layers) + report.fixed_bytes
    assert report.pairs == [(2, 3), (4, 5)]
    assert [layer.kind for layer in report.layers] == ["plain"] * 2 + ["merged"] * 4
    assert [layer.group for layer in report.layers] == [None, None, (2, 3), (2, 3), (4, 5), (4, 5)]
    assert [layer.side for layer in report.layers] == [None, None, 0, 1, 0, 1]
    assert (before.retained, report.retained, report.retained_max) == (0, 20, 52)
    assert before.distance is None
    assert report.distance == pytest.approx(0.5, abs=0.1)
    assert report.layers[2].n_merged == 100


def test_the_report_reads_well(random_model: str) -> None:
    with Llama(random_model, minicache=MiniCache(type_k="q8_0"), **SETTINGS) as llm:
        report = llm.kv_report()
    text = str(report)
    assert "merged layers 3+4" in text
    assert f"ratio {report.ratio:.2f}" in text
    assert "as plain q8_0/f16" in text
    parsed = json.loads(report.to_json())
    assert parsed["bytes"] == report.bytes
    assert parsed["pairs"] == [[3, 4]]
    assert parsed["layers"][3]["kind"] == "merged"


@pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")
@pytest.mark.parametrize(("pool", "row"), [("f16", 128), ("q8_0", 68), ("cache", 36)])
def test_the_window_is_counted_once_whatever_the_context(random_model: str, pool: str, row: int) -> None:
    settings = MiniCache(start=2, retain=0.1, window=50, pool_type=pool, type_k="q4_0", type_v="q4_0")
    reports = []
    for n_ctx in (256, 1024):
        with Llama(random_model, minicache=settings, **{**SETTINGS, "n_ctx": n_ctx}) as llm:
            reports.append(llm.kv_report())
    without = replace(settings, window=0)
    with Llama(random_model, minicache=without, **SETTINGS) as llm:
        before = llm.kv_report()
    assert (before.window, before.bytes_window) == (0, 0)
    assert "window" not in str(before)
    for report in reports:
        assert (report.window, report.pool_type) == (50, pool)
        assert report.bytes_window == 2 * 50 * (
            4 * row + 8
        )  # K and V of both layers of two pairs, and the index
        assert report.bytes == (
            report.bytes_directions + report.bytes_magnitudes + report.bytes_pool + report.bytes_index
            + report.bytes_unmerged + report.fixed_bytes
        )  # fmt: skip
        assert 0 <= report.fixed_bytes - report.bytes_window <= 32 * 20
        assert report.bytes == sum(layer.bytes for layer in report.layers) + report.fixed_bytes
        assert "the last 50 tokens unmerged" in str(report)
        assert json.loads(report.to_json())["bytes_window"] == report.bytes_window
    report = reports[0]
    assert (report.bytes_pool, report.bytes_index) == (before.bytes_pool, before.bytes_index)
    assert report.ratio == pytest.approx(before.ratio)
    assert report.total_ratio < before.total_ratio


def test_a_window_alone_has_a_pool_type(random_model: str) -> None:
    with Llama(random_model, minicache=MiniCache(retain=0, window=20), **SETTINGS) as llm:
        report = llm.kv_report()
    assert (report.pool_type, report.retained_max, report.bytes_pool) == ("q8_0", 0, 0)
    assert report.bytes_window > 0


def test_a_closed_llama_has_no_report(random_model: str) -> None:
    with Llama(random_model, minicache=MiniCache(), **SETTINGS) as llm:
        assert llm.n_ctx() == 256
    with pytest.raises(MiniCacheError, match="closed"):
        llm.kv_report()
    llm.close()


def test_the_warning_is_measured_and_comes_once(random_model: str, parallel_model: str) -> None:
    with (
        Llama(random_model, minicache=MiniCache(), **SETTINGS) as llm,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        llm.eval(tiny_models.prompt(20))
        assert not caught  # too few tokens to say
        llm.eval(tiny_models.prompt(20))
        llm.eval(tiny_models.prompt(20))
        assert [warning.category for warning in caught] == [MiniCacheWarning]
        assert f"{llm.kv_report().distance:.1f}" in str(caught[0].message)
    with Llama(parallel_model, minicache=MiniCache(), **SETTINGS) as llm, warnings.catch_warnings():
        warnings.simplefilter("error")
        llm.eval(tiny_models.prompt(60))


#
# llama_cpp's own ways
#


@pytest.fixture(params=["plain", "minicache"])
def llm(request: pytest.FixtureRequest, parallel_model: str) -> Llama:
    minicache = MiniCache(type_k="q8_0", type_v="q8_0") if request.param == "minicache" else None
    return Llama(parallel_model, minicache=minicache, seed=1, **SETTINGS)


def test_chat_streaming_gives_the_answer_in_pieces(llm: Llama) -> None:
    whole = llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0)
    llm.reset()
    pieces = llm.create_chat_completion(QUESTION, max_tokens=12, temperature=0, stream=True)
    text = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert text
    assert text == whole["choices"][0]["message"]["content"]


def test_a_grammar_rules_the_answer(llm: Llama) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= "a" ("b" | "c") "a"', verbose=False)
    answer = llm("hello", grammar=grammar, max_tokens=8, temperature=1.0)
    assert answer["choices"][0]["text"] in ("aba", "aca")


def test_a_saved_state_goes_on_where_it_was(llm: Llama) -> None:
    llm.eval(tiny_models.prompt(70))
    state = llm.save_state()
    llm.eval([7])
    expected = greedy(llm, 20)
    llm.reset()
    llm.eval(tiny_models.prompt(30, seed=5))
    llm.load_state(state)
    assert llm.n_tokens == 70
    llm.eval([7])
    assert greedy(llm, 20) == expected


def test_a_refused_state_leaves_the_context_usable(parallel_model: str) -> None:
    with Llama(parallel_model, minicache=MiniCache(), **SETTINGS) as other:
        other.eval(tiny_models.prompt(40))
        foreign = other.save_state()
    with Llama(parallel_model, minicache=MiniCache(t=0.5), **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(50, seed=3))
        kept = llm.input_ids[:50].tolist()
        own = llm.save_state()
        for state in (foreign, cut_short(own)):
            with pytest.raises(MiniCacheError, match="refused"):
                llm.load_state(state)
            assert llm.n_tokens == 50
            assert llm.input_ids[:50].tolist() == kept
        llm.eval([9])
        found = greedy(llm, 10)
        llm.reset()
        llm.eval(tiny_models.prompt(50, seed=3))
        llm.eval([9])
        assert greedy(llm, 10) == found


def test_a_plain_context_survives_a_refused_state(parallel_model: str) -> None:
    with Llama(parallel_model, **SETTINGS) as llm:
        llm.eval(tiny_models.prompt(50))
        with pytest.raises(MiniCacheError, match="refused"):
            llm.load_state(cut_short(llm.save_state()))
        llm.eval([9])  # llama.cpp's own cache is empty by now, and the tokens are counted accordingly
        assert llm.n_tokens in (1, 51)


def cut_short(state: llama_cpp.LlamaState) -> llama_cpp.LlamaState:
    size = state.llama_state_size // 2
    return llama_cpp.LlamaState(
        state.input_ids, state.scores, state.n_tokens, state.llama_state[:size], size, state.seed
    )


def test_pickling_keeps_the_setting(random_model: str) -> None:
    settings = MiniCache(start=4, type_k="q8_0", type_v="q8_0")
    with Llama(random_model, minicache=settings, **SETTINGS) as llm:
        copy = pickle.loads(pickle.dumps(llm))
    with copy:
        assert copy.minicache == settings
        assert copy.kv_report().pairs == [(4, 5)]


def test_embeddings_are_untouched(random_model: str) -> None:
    with Llama(random_model, embedding=True, **SETTINGS) as llm:
        ours = llm.embed("abc abc")
    upstream = llama_cpp.Llama(random_model, embedding=True, **SETTINGS)
    assert np.array_equal(ours, upstream.embed("abc abc"))
    upstream.close()


#
# the native library
#


def python(program: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )


def test_another_library_is_an_import_error_that_helps() -> None:
    program = """
import ctypes, ctypes.util, sys, types
package, bindings = types.ModuleType("llama_cpp"), types.ModuleType("llama_cpp.llama_cpp")
bindings._lib = ctypes.CDLL(ctypes.util.find_library("m"))
sys.modules["llama_cpp"], sys.modules["llama_cpp.llama_cpp"] = package, bindings
import minicache_cpp
"""
    done = python(program)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: llama_cpp was imported earlier")
    assert "import minicache_cpp before" in last
    assert f"LLAMA_CPP_LIB_PATH={library.library_dir()}" in last


@pytest.mark.parametrize(
    "program",
    ["import minicache_cpp, llama_cpp._ggml as ggml; ggml.libggml; from minicache_cpp import Llama",
     "from minicache_cpp import Llama, kernels; from llama_cpp._ggml import libggml"],
)  # fmt: skip
def test_llama_cpp_gets_our_libraries_and_no_others(program: str) -> None:
    program += """
import sys
from pathlib import Path
maps = Path("/proc/self/maps")
if maps.exists():
    print(len({line.split()[-1] for line in maps.read_text().splitlines() if "libggml-base" in line}))
else:
    print(1)
"""
    done = python(program)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_an_empty_library_directory_is_told(tmp_path: Path) -> None:
    environment = {**os.environ, "MINICACHE_LIB_PATH": str(tmp_path)}
    done = python("from minicache_cpp import Llama", environment)
    assert f"MINICACHE_LIB_PATH is {tmp_path}" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("version", ["0.3.35", "0.4.0"])
def test_another_version_of_llama_cpp_is_refused(version: str) -> None:
    with (
        mock.patch("importlib.metadata.version", return_value=version),
        pytest.raises(ImportError, match=f"0.3.36.*found {version}"),
    ):
        library.check_version()


@pytest.mark.skipif(not HEADER.exists(), reason="the header is part of the source checkout")
def test_the_declarations_are_the_headers() -> None:
    def words(text: str) -> str:
        return "".join(re.sub(r"//.*", "", text).replace("LLAMA_API", "").split())

    header = words(HEADER.read_text())
    for declaration in re.split(r"(?<=;)\n+(?=\S)", binding.DECLARATIONS.strip()):
        assert words(declaration) in header
    functions = re.findall(r"LLAMA_API [^;{]*?(llama_minicache_\w+)\(", HEADER.read_text())
    missing = {name for name in functions if f"{name}(" not in binding.DECLARATIONS}
    assert missing <= {"llama_minicache_init_from_model"}  # cffi can't pass llama.h's structs by value


#
# kernels
#


def test_merge_and_restore_are_the_papers(rng: np.random.Generator) -> None:
    x_a, x_b = rng.standard_normal((2, 5, 3, 64)).astype(np.float32)
    merged = kernels.merge(x_a, x_b, t=0.6)
    length_a, length_b = np.linalg.norm(x_a, axis=-1), np.linalg.norm(x_b, axis=-1)
    u_a, u_b = x_a / length_a[..., None], x_b / length_b[..., None]
    angle = np.arccos((u_a * u_b).sum(-1))
    weights = np.sin(0.4 * angle) / np.sin(angle), np.sin(0.6 * angle) / np.sin(angle)
    expected = weights[0][..., None] * u_a + weights[1][..., None] * u_b
    np.testing.assert_allclose(merged.direction, expected, atol=1e-5)
    np.testing.assert_allclose(merged.mag_a, length_a, rtol=1e-3)
    np.testing.assert_allclose(merged.mag_b, length_b, rtol=1e-3)
    np.testing.assert_allclose(merged.distance, angle / np.pi, atol=1e-5)
    restored = kernels.restore(merged.direction, merged.mag_a)
    np.testing.assert_allclose(restored, expected * length_a[..., None], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("reference", [False, True])
def test_attention_is_a_softmax(rng: np.random.Generator, reference: bool) -> None:
    q = rng.standard_normal((4, 6, 32)).astype(np.float32)
    k, v = rng.standard_normal((2, 50, 2, 32)).astype(np.float32)
    mag_k, mag_v = rng.uniform(0.5, 2, (2, 50, 2)).astype(np.float32)
    mask = np.where(rng.random((4, 50)) < 0.3, -np.inf, 0.0)
    mask[:, 0] = 0
    cells = np.array([3, 27])
    pool_k, pool_v = rng.standard_normal((2, 2, 2, 32)).astype(np.float32)
    now = np.array([48, 49])
    cur_k, cur_v = rng.standard_normal((2, 2, 2, 32)).astype(np.float32)
    result = kernels.attention(
        q, k, v, mag_k=mag_k, mag_v=mag_v, mask=mask, reference=reference, n_threads=2,
        retained=Retained(cells, pool_k, pool_v, block=25, type="f16"), current=Current(now, cur_k, cur_v),
    )  # fmt: skip
    full_k, full_v = kernels.restore(k, mag_k), kernels.restore(v, mag_v)
    full_k[cells], full_v[cells] = pool_k, pool_v
    full_k[now], full_v[now] = cur_k, cur_v
    full_k, full_v = np.repeat(full_k, 3, axis=1), np.repeat(full_v, 3, axis=1)
    scores = np.einsum("qhd,khd->qhk", q, full_k) / np.sqrt(32) + mask[:, None]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(result, np.einsum("qhk,khd->qhd", weights, full_v), atol=3e-3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


ARRAY = np.ones((4, 2, 32), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kernels.merge(ARRAY[0], ARRAY[0]), "2 dimensions"),
        (lambda: kernels.merge(ARRAY, ARRAY[:3]), "the same shape"),
        (lambda: kernels.merge(ARRAY, ARRAY, t=2.0), "[0, 1]"),
        (lambda: kernels.merge(ARRAY, ARRAY, t=float("nan")), "[0, 1]"),
        (lambda: kernels.merge(ARRAY[:0], ARRAY[:0]), "empty"),
        (lambda: kernels.merge(ARRAY.astype(complex), ARRAY), "complex"),
        (lambda: kernels.merge(ARRAY * np.nan, ARRAY), "NaN"),
        (lambda: kernels.merge(ARRAY.astype(float) * 1e300, ARRAY), "float32"),
        (lambda: kernels.restore(ARRAY, ARRAY[:, :, 0].T), "[4, 2]"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY[:3]), "v is [3, 2, 32]"),
        (lambda: kernels.attention(ARRAY[:, :, :16], ARRAY, ARRAY), "k is [4, 2, 32]"),
        (lambda: kernels.attention(ARRAY[:, :1], ARRAY, ARRAY), "multiple"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, mag_k=ARRAY[0]), "mag_k"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, mask=np.zeros((4, 5))), "mask is [4, 5]"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, type_k="q3_0"), "type_k='q3_0'"),
        (lambda: kernels.attention(*[ARRAY[:, :, :24]] * 3, type_k="q4_0"), "head size 24"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, scale=float("inf")), "scale"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, n_threads=0), "n_threads"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, current=Current([4], *[ARRAY[:1]] * 2)), "0 to 3"),
        (lambda: kernels.attention(ARRAY, ARRAY, ARRAY, current=Current([1], ARRAY, ARRAY)), "current.k"),
        (
            lambda: kernels.attention(ARRAY, ARRAY, ARRAY, retained=Retained([0, 1], *[ARRAY[:2]] * 2, 4)),
            "block",
        ),
    ],
)
def test_wrong_arrays_are_refused(call: object, words: str) -> None:
    with pytest.raises(MiniCacheError, match=re.escape(words)):
        call()  # type: ignore[operator]

"""Settings as text: one table of good and bad texts, through every way in that takes one.

The native library has the one parser. Its C function, MiniCache.parse(), Llama(minicache=...), the SPEC of the commands
and the environment variable LLAMA_MINICACHE must therefore agree on every text.
"""

from __future__ import annotations

import locale
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import CacheSpec, KVReport, MiniCache, MiniCacheError
from minicache_cpp.cache.context_report import read_report
from minicache_cpp.native import binding
from minicache_cpp.native.binding import llama_h
from minicache_cpp.runtime.asked import given_spec
from minicache_cpp.runtime.request import Given, resolve
from oracle.model import Config
from support import tiny_models
from support.contexts import Context, Model
from support.loaded import Loaded
from support.plans import coded

GOOD: dict[str, dict[str, Any]] = {
    "slerp": {},
    "slerp:": {},
    " slerp : ": {},
    "mode=slerp": {},
    '"slerp"': {},
    "SLERP": {},
    "Mode=Slerp,T=0.7": {"t": 0.7},
    "'slerp:start=0.25'": {"start": 0.25},
    "slerp:start=0.25": {"start": 0.25},
    "slerp:start=3": {"start": 3},
    "slerp:start=0": {"start": 0},
    "slerp:start=0.0": {"start": 0.0},
    "slerp:start=1e-1": {"start": 0.1},
    "slerp:start=.5": {"start": 0.5},
    "slerp:start=5E-1": {"start": 0.5},
    "slerp:t=1": {"t": 1.0},
    "slerp:t=+0.5": {"t": 0.5},
    "slerp:t=0.6": {"t": 0.6},
    "slerp:retain=5e-2": {"retain": 0.05},
    "slerp:retain=0,window=64": {"retain": 0.0, "window": 64},
    "slerp: start = 2 , t=0.25,\tretain=0.1 ,": {"start": 2, "t": 0.25, "retain": 0.1},
    "slerp:start=2,,t=0.25": {"start": 2, "t": 0.25},
    "start=2,mode=slerp": {"start": 2},
    "slerp:pairs=1-2;3-5": {"pairs": [(1, 2), (3, 5)]},
    "slerp:pairs= 1 - 2 ; 3 - 5": {"pairs": [(1, 2), (3, 5)]},
    "slerp:pool=f16": {"pool_type": "f16"},
    "slerp:pool=cache,strict=1": {"pool_type": "cache", "strict": True},
    "slerp:strict=0": {},
    "slerp:t=0.3333333333333333": {"t": 1 / 3},
    "average": {"mode": "average", "retain": 0.0},
    "average:t=0.25": {"mode": "average", "retain": 0.0, "t": 0.25},
    "average:retain=0.1": {"mode": "average", "retain": 0.1},
    "mode=average,start=2": {"mode": "average", "retain": 0.0, "start": 2},
    "start=2,mode=average": {"mode": "average", "retain": 0.0, "start": 2},
    "plain": {"mode": "plain"},
    "plain:first=2:q8_0": {"mode": "plain", "first": (2, "q8_0", "q8_0")},
    "plain: last = 3 : q5_0 / q4_1 ": {"mode": "plain", "last": (3, "q5_0", "q4_1")},
}

# cache types are a program's own options where the environment variable is read
GOOD_WITH_TYPES: dict[str, dict[str, Any]] = {
    "slerp:type=q4_0": {"type_k": "q4_0", "type_v": "q4_0"},
    "slerp:type=q8_0,type_v=q4_1": {"type_k": "q8_0", "type_v": "q4_1"},
    "slerp:type_v=q4_1,type=q8_0": {"type_k": "q8_0", "type_v": "q4_1"},
    "slerp:type_k=iq4_nl": {"type_k": "iq4_nl"},
    "slerp:k=iq4_nl,v=q8_0": {"type_k": "iq4_nl", "type_v": "q8_0"},
    "plain:k=q8_0,v=q4_0": {"mode": "plain", "type_k": "q8_0", "type_v": "q4_0"},
    "plain:type=q4_0,first=2:q8_0,last=1:f16/q8_0": {
        "mode": "plain", "type_k": "q4_0", "type_v": "q4_0",
        "first": (2, "q8_0", "q8_0"), "last": (1, "f16", "q8_0"),
    },
}  # fmt: skip

# How people write the path of a plan. The files lie in the folder FOLDER, which is the home folder too.
PLAN_TEXTS = [
    "plan=FOLDER/model.plan.gguf",
    "plan = FOLDER/model.plan.gguf ,",
    "FOLDER/model.plan.gguf",
    "  FOLDER/model.plan.gguf\n",
    '"FOLDER/model.plan.gguf"',
    "'plan=FOLDER/model.plan.gguf'",
    'plan="FOLDER/model.plan.gguf"',
    "plan='FOLDER/model.plan.gguf',strict=0",
    "FOLDER/model.plan.gguf,strict=0",
    "~/model.plan.gguf",
    "plan=~/model.plan.gguf",
    'plan="~/model.plan.gguf"',
    "FOLDER/a,b.gguf",
    '"FOLDER/a,b.gguf"',
    'plan="FOLDER/a,b.gguf"',
    "strict=0,plan='FOLDER/a,b.gguf'",
    '"FOLDER/a,b.gguf",strict=0',
    "FOLDER/t=1, it's a plan.gguf",
    'plan = "FOLDER/t=1, it\'s a plan.gguf"',
]
PLAN_NAMES = ["model.plan.gguf", "a,b.gguf", "t=1, it's a plan.gguf"]

# text -> a part of the reason
BAD = {
    "": "names no settings",
    " ": "names no settings",
    ",": "names no settings",
    "start": "not of the form key=value",
    "=0.5": "not of the form key=value",
    "t=": "not of the form key=value",
    "t": "not of the form key=value",
    "colour=red": "unknown key colour",
    "Begin=0.5": "unknown key begin",
    "t=0.5,t=0.5": "t is given twice",
    "slerp:mode=average": "mode is given twice",
    "grenze=½": "unknown key grenze",
    "\u00a0start=0.5": "unknown key \u00a0start",
    "merge:t=1": "unknown key merge:t",
    "t=x": "not a number",
    "t=0x1p-1": "not a number",
    "t=nan": "not a number",
    "t=inf": "not a number",
    "t=0,5": "not of the form key=value",
    "t=1e": "not a number",
    "t=1.2.3": "not a number",
    "t=0.5f": "not a number",
    "t=- 1": "not a number",
    "t=2": "t = 2.0 is out of range",
    "t=-0.1": "t = -0.1 is out of range",
    "t=1e999": "out of range",
    "retain=1.5": "retain = 1.5 is out of range",
    "start=1.0": "start = 1.0 is out of range",
    "start=1e3": "start = 1000.0 is out of range",
    "start=-1": "start = -1.0 is out of range",
    "start=0x2": "not a number",
    "window=1e3": "not a whole number",
    "window=-1": "not a whole number",
    "window=0.5": "not a whole number",
    "window=65537": "window = 65537 is out of range",
    "window=99999999999999999999": "not a whole number",
    "pairs=8": "not of the form 8-9;10-11",
    "pairs=1-2-3": "not of the form 8-9;10-11",
    "pairs=1-2;": "not of the form 8-9;10-11",
    "pairs=-1-2": "not of the form 8-9;10-11",
    "pairs=2-1": "the shallower first",
    "pairs=1-1": "the shallower first",
    "pairs=1-2;2-3": "overlaps another pair",
    "pool=q4_0": "not a pool type",
    "mode=code": "not a mode",
    "plain:t=0.5": "t is given beside plain",
    "plain:pairs=1-2": "pairs is given beside plain",
    "plain:first=2": "not of the form 2:q8_0",
    "plain:first=q8_0": "not of the form 2:q8_0",
    "plain:first=2:q8_0/q4_0/f16": "not of the form 2:q8_0",
    "plain:first=-1:q8_0": "not a whole number",
    "plain:last=2:q3_0": "not a cache type",
    "slerp:first=2:q8_0": "for mode plain",
    "slerp:k=q8_0,type_k=q8_0": "k is type_k",
    "strict=yes": "neither 0 nor 1",
    "type=q3": "not a cache type",
    "type_k=q6_k": "not a cache type",
    "plan=missing.gguf": "missing.gguf does not exist",
    "plan=missing.gguf,t=0.5": "t is given beside plan",
    "missing.gguf": "missing.gguf does not exist",
    "slerp:missing.gguf": "mode is given beside plan",
    '"missing.gguf",plan=other.gguf': "plan is given twice",
    "Plan=missing.gguf": "missing.gguf does not exist",
    "missing.GGUF": "missing.GGUF does not exist",
    "disabled": "is not of the form key=value; write plan=PLAN",
    "Plans=missing.gguf": "unknown key plans",
    'plan="missing.gguf': "is not closed",
    "/a,missing.gguf,strict=1": "'/a' is not of the form key=value",
    "~nobody/missing.gguf": "~nobody/missing.gguf does not exist",
    # nothing means SLERP but its name
    "1": "does not say how the cache is to be kept: write plan=PLAN",
    "on": "does not say how the cache is to be kept: write plan=PLAN",
    " true ": "does not say how the cache is to be kept: write plan=PLAN",
    "ON": "does not say how the cache is to be kept: write plan=PLAN",
    "Q8_0": "is a cache type, which is the program's own option",
    '"yes"': "does not say how the cache is to be kept: write plan=PLAN",
    "auto": "make a plan with `minicache calibrate MODEL -o PLAN`, and write plan=PLAN",
    "start=0.5": "'start=0.5' names no mode",
    "retain=0.1,window=64": "names no mode",
    "strict=1": "names no mode",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tiny_models.random_model().write(tmp_path_factory.mktemp("model") / "model.gguf"))


def report_of_the_environment(model: Model) -> KVReport | None:
    """The report of a context that LLAMA_MINICACHE decides on; None where it is refused."""
    params = llama_h.llama_context_default_params()
    params.n_ctx, params.n_threads, params.flash_attn_type = 256, 1, 1
    binding.use_env()
    handle = llama_h.llama_init_from_model(model.handle, params)
    if handle is None:
        return None
    report = read_report(handle)
    llama_h.llama_free(handle)
    return report


@contextmanager
def decimal_comma() -> Iterator[None]:
    before = locale.setlocale(locale.LC_NUMERIC)
    for name in ("de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "fr_FR.utf8"):
        try:
            locale.setlocale(locale.LC_NUMERIC, name)
        except locale.Error:
            continue
        try:
            yield
        finally:
            locale.setlocale(locale.LC_NUMERIC, before)
        return
    pytest.skip("this machine has no locale with a decimal comma")


def c_parse(text: str) -> Any:
    """The struct that the C function fills in, None where it refuses."""
    params = binding.ffi.new("struct llama_minicache_params *")
    types = [binding.ffi.new("enum ggml_type *") for _ in range(2)]
    return params if binding.lib.llama_minicache_parse_params(text.encode(), params, *types) else None


@pytest.mark.parametrize(("text", "settings"), [*GOOD.items(), *GOOD_WITH_TYPES.items()])
def test_a_good_text_means_the_same_everywhere(text: str, settings: dict[str, Any]) -> None:
    expected = MiniCache(**settings)
    assert MiniCache.parse(text) == expected
    assert CacheSpec.parse(text) == CacheSpec.of(expected)
    assert MiniCache.parse(expected.spec()) == expected
    params = c_parse(text)
    assert params.start_layer == (expected.start if isinstance(expected.start, int) else -1)
    assert (params.t, params.retain) == (pytest.approx(expected.t), pytest.approx(expected.retain))
    assert (params.window, params.strict, params.n_pairs) == (
        expected.window,
        expected.strict,
        len(expected.pairs or ()),
    )


@pytest.mark.parametrize("text", BAD)
def test_a_bad_text_is_refused_everywhere_for_the_same_reason(text: str) -> None:
    assert c_parse(text) is None
    reason = binding.last_error()
    assert BAD[text] in reason
    assert "\n" not in reason
    for parse in (MiniCache.parse, CacheSpec.parse):
        with pytest.raises(MiniCacheError) as caught:
            parse(text)
        assert BAD[text] in str(caught.value)


def asked_of_llama(model: Model, text: str) -> CacheSpec:
    """What Llama(minicache=text) settles on."""
    return resolve(model.path, Given(text), {}).spec


def asked_of_a_command(text: str) -> CacheSpec | None:
    """What `chat` and `serve` understand by --config text."""
    return given_spec(Namespace(config=text, no_minicache=False))


@pytest.mark.parametrize(("text", "settings"), [*GOOD.items(), *GOOD_WITH_TYPES.items()])
def test_llama_and_the_commands_mean_the_same(model: Model, text: str, settings: dict[str, Any]) -> None:
    expected = CacheSpec.of(MiniCache(**settings))
    assert asked_of_llama(model, text) == expected
    assert asked_of_a_command(text) == expected


# Llama and the commands take "auto" for the model's own plan
@pytest.mark.parametrize("text", [text for text in BAD if text != "auto"])
def test_llama_and_the_commands_refuse_the_same(model: Model, text: str) -> None:
    for ask in (lambda: asked_of_llama(model, text), lambda: asked_of_a_command(text)):
        with pytest.raises(MiniCacheError) as caught:
            ask()
        assert BAD[text] in str(caught.value)


@pytest.mark.parametrize(("text", "settings"), GOOD.items())
def test_the_environment_variable_means_the_same(
    model: Model, monkeypatch: pytest.MonkeyPatch, text: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setenv("LLAMA_MINICACHE", text)
    found = report_of_the_environment(model)
    with Context(model, MiniCache(**settings)) as ctx:
        assert found == ctx.report()
    assert found is not None
    assert found.active == (settings.get("mode") != "plain")


@pytest.mark.parametrize("text", [text for text in BAD if text.strip()] + list(GOOD_WITH_TYPES))
def test_a_bad_environment_variable_is_refused(
    model: Model, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("LLAMA_MINICACHE", text)
    assert report_of_the_environment(model) is None
    reason = binding.last_error()
    assert reason.startswith("LLAMA_MINICACHE: ")
    assert BAD.get(text, "a cache type is the program's own option") in reason


@pytest.mark.parametrize("text", ["", " ", "0", "off", " off\n", '"off"', "''", "OFF", "False", "no", "None"])
def test_an_environment_variable_that_is_off_is_a_plain_cache(
    model: Model, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("LLAMA_MINICACHE", text)
    report = report_of_the_environment(model)
    assert report is not None
    assert not report.active


@pytest.fixture(scope="module")
def plan_folder(random_model: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plans of the model."""
    folder = tmp_path_factory.mktemp("plans")
    for name in PLAN_NAMES:
        coded(random_model, Config(random_model.pairs), folder / name)
    return folder


@pytest.mark.parametrize("text", PLAN_TEXTS)
def test_the_path_of_a_plan_means_the_same_everywhere(
    random_model: Loaded, plan_folder: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("USERPROFILE" if sys.platform == "win32" else "HOME", str(plan_folder))
    text = text.replace("FOLDER", str(plan_folder))
    path = plan_folder / next(name for name in PLAN_NAMES if name in text)
    for settings in (MiniCache.parse(text), CacheSpec.parse(text).minicache):
        assert settings == MiniCache(plan=path)
        assert str(settings.plan) == str(path)
        assert CacheSpec.parse(settings.spec()).minicache == settings
        strict = MiniCache(plan=path, strict=True)
        assert CacheSpec.parse(strict.spec()).minicache == strict
    monkeypatch.setenv("LLAMA_MINICACHE", text)
    report = report_of_the_environment(random_model.model)
    assert report is not None
    assert report.mode == "code"


@pytest.mark.parametrize("spec", ["", "q3", "auto", "merge:t=1", "q8_0,t=0.5"])
def test_what_is_no_spec_is_refused_with_what_there_is(spec: str) -> None:
    with pytest.raises(MiniCacheError, match="is not a cache"):
        CacheSpec.parse(spec)


def test_a_decimal_comma_of_the_locale_changes_nothing() -> None:
    """Desktop toolkits set the user's locale, in which strtod() reads 0,5 and not 0.5."""
    with decimal_comma():
        assert MiniCache.parse("slerp:start=0.25,t=0.5") == MiniCache(start=0.25, t=0.5)
        with pytest.raises(MiniCacheError, match=r"t = 1\.5 is out of range"):
            MiniCache(t=1.5)


@pytest.mark.parametrize(
    ("start", "n_layer", "layer"),
    [(0.5, 30, 15), (0.58, 50, 29), (0.29, 100, 29), (0.1, 10, 1), (0.7, 10, 7), (0.0, 6, 0), (0.999, 6, 5)],
)
def test_the_start_layer_has_one_rule(start: float, n_layer: int, layer: int) -> None:
    assert MiniCache(start=start).start_layer(n_layer) == layer

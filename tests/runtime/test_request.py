"""What Llama is asked for is settled, or refused, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minicache_cpp import CacheSpec, Llama, MiniCache, MiniCacheError
from support.loaded import Loaded
from support.odd_names import ODD_NAMES, oddly_named

SMALL: dict[str, Any] = {"n_ctx": 256, "n_threads": 1, "verbose": False}


@pytest.mark.parametrize(
    ("minicache", "types"),
    [
        (CacheSpec("q8_0", "q8_0"), ("q8_0", "q8_0")),
        (CacheSpec.parse("slerp:type=q4_0"), ("q4_0", "q4_0")),
        ("q4_1", ("q4_1", "q4_1")),
        ("slerp:start=2,type_v=q8_0", ("f16", "q8_0")),
    ],
)
def test_a_cache_may_be_named(
    random_model: Loaded, minicache: CacheSpec | str, types: tuple[str, str]
) -> None:
    with Llama(str(random_model.path), minicache=minicache, **SMALL) as llm:
        report = llm.kv_report()
        assert (report.type_k, report.type_v) == types
        assert llm.cache_spec == (CacheSpec.parse(minicache) if isinstance(minicache, str) else minicache)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"minicache": CacheSpec("q8_0", "q8_0"), "type_k": 0},
            "type_k is given twice: f32 to Llama and q8_0",
        ),
        ({"minicache": "q8_0", "type_v": "f16"}, "type_v is given twice"),
        ({"minicache": "q8"}, "is not a cache"),
        ({"minicache": ""}, "is not a cache"),
        ({"minicache": "none.gguf"}, "none.gguf does not exist"),
        ({"minicache": Path("none")}, "none does not exist"),
        ({"n_threads_batch": 100_000}, "n_threads_batch=100000: it must be a whole number from 0 to 512"),
        ({"minicache": MiniCache(), "vocab_only": True}, "leave it or minicache out"),
        ({"minicache": "auto", "vocab_only": True}, "leave it or minicache out"),
        ({"calibrate": "nonsense"}, "none of 'once', 'background' and 'never'"),
        ({"minicache": MiniCache(), "calibrate": ""}, "none of 'once', 'background' and 'never'"),
    ],
)
def test_what_contradicts_itself_is_refused(
    random_model: Loaded, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(MiniCacheError) as caught:
        Llama(str(random_model.path), **arguments, **SMALL)
    assert words in str(caught.value)


@pytest.mark.parametrize("minicache", [None, "q8_0", MiniCache(), "auto"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_ctx", -1),
        ("n_ctx", 2**32 + 256),  # as an unsigned number of 32 bits this would be 256
        ("n_ctx", None),
        ("n_ctx", "256"),
        ("n_ctx", True),
        ("n_batch", 0),
        ("n_batch", -5),
        ("n_ubatch", -1),
        ("n_threads", -1),
        ("n_threads", 1.5),
    ],
)
def test_counts_out_of_range_are_refused(
    random_model: Loaded, minicache: Any, name: str, value: object
) -> None:
    with pytest.raises(MiniCacheError) as caught:
        Llama(str(random_model.path), minicache=minicache, **{**SMALL, name: value})
    assert str(caught.value).startswith(f"{name}={value!r}: it must be a whole number from ")


@pytest.mark.parametrize("n_ctx", [256, 0])
def test_a_batch_is_no_longer_than_the_context(random_model: Loaded, n_ctx: int) -> None:
    """llama_cpp makes room for the logits of each of its tokens."""
    with Llama(str(random_model.path), **{**SMALL, "n_ctx": n_ctx, "n_batch": 2**31 - 1}) as llm:
        assert llm.n_batch == llm.n_ctx()
        assert len(llm.scores) == llm.n_ctx()


@pytest.mark.parametrize(
    ("asked", "threads"), [({}, (3, 3)), ({"n_threads": 1, "n_threads_batch": 5}, (1, 5))]
)
def test_threads_keep_to_the_quota_unless_they_are_asked_for(
    random_model: Loaded, monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], threads: tuple[int, int]
) -> None:
    monkeypatch.setattr("minicache_cpp.runtime.request.usable_cores", lambda: 3)
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 8)
    with Llama(str(random_model.path), n_ctx=256, verbose=False, **asked) as llm:
        assert (llm.n_threads, llm.n_threads_batch) == threads


@pytest.mark.parametrize("minicache", [None, "q8_0", MiniCache()])
def test_a_context_of_zero_tokens_is_the_models_own(random_model: Loaded, minicache: Any) -> None:
    with Llama(str(random_model.path), minicache=minicache, **{**SMALL, "n_ctx": 0}) as llm:
        assert llm.n_ctx() == len(llm.input_ids) == int(llm.metadata["llama.context_length"])
        llm.eval([3, 4, 5])


def test_a_vocabulary_alone_is_loaded_without_a_cache(random_model: Loaded) -> None:
    with Llama(str(random_model.path), vocab_only=True, **SMALL) as llm:
        assert llm.tokenize(b"abc")


@pytest.mark.parametrize("types", [("zz", "q8_0"), (None, None), ("q4_k", "q4_k")])
def test_a_spec_has_types_that_exist(types: tuple[Any, Any]) -> None:
    with pytest.raises(MiniCacheError, match="is not a cache type"):
        CacheSpec(*types)


def test_a_spec_has_the_types_of_its_settings() -> None:
    with pytest.raises(MiniCacheError, match="beside MiniCache"):
        CacheSpec("q8_0", "q8_0", MiniCache())


@ODD_NAMES
@pytest.mark.parametrize("minicache", [None, "q8_0", "auto"])
def test_a_path_that_is_not_utf_8_is_refused(
    random_model: Loaded, minicache: str | None, tmp_path: Path
) -> None:
    """By llama_cpp, in other words; everything else opens such models."""
    odd = oddly_named(random_model.path, tmp_path)
    for model in (odd, str(odd)):
        with pytest.raises(
            MiniCacheError, match=r"whose path is not UTF-8, as '.*odd\\udcff.gguf' is; rename"
        ):
            Llama(model, minicache=minicache, **SMALL)


@pytest.mark.parametrize("settings", [{"start": 2**31}, {"start": 10**30}, {"t": 10**400}, {"window": 2**40}])
def test_numbers_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(MiniCacheError):
        MiniCache(**settings)


@pytest.mark.parametrize("text", ["start=0.5\0,junk=1", None, 5, b"t=0.5"])
def test_what_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(MiniCacheError, match="is not a text of settings"):
        MiniCache.parse(text)


def test_a_text_that_is_not_utf_8_is_refused_in_one_line() -> None:
    with pytest.raises(MiniCacheError, match="does not exist"):
        MiniCache.parse("plan=\udcff.gguf")

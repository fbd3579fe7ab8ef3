"""The vocabulary of a model file."""

from __future__ import annotations

from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.text.vocabulary import Vocabulary
from support import tiny_models


def test_the_vocabulary_gives_text_back(smollm2: Path) -> None:
    with Vocabulary(smollm2) as vocabulary:
        tokens = vocabulary.tokenize("Grüße,\n\tworld <|im_end|>")
        assert vocabulary.detokenize(tokens) == "Grüße,\n\tworld "
        assert (
            len(vocabulary.tokenize("<|im_end|>"))
            == 1
            < len(vocabulary.tokenize("<|im_end|>", special=False))
        )
        assert not vocabulary.chat_template().is_plain


def test_a_model_without_a_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny_models, "add_tokenizer", lambda writer: writer.add_tokenizer_model("no_vocab"))
    path = tiny_models.random_model().write(tmp_path / "mute.gguf")
    with pytest.raises(MiniCacheError, match="no vocabulary"):
        Vocabulary(path)

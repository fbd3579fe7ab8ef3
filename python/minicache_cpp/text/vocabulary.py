"""A model's vocabulary and chat template, loaded without its weights."""

from __future__ import annotations

import ctypes
from pathlib import Path

from ..errors import MiniCacheError
from ..native.binding import llama_h
from ..native.log import NativeLog
from ..native.model import load_model
from .chat_template import ChatTemplate


class Vocabulary:
    """Makes text into tokens and back; MiniCacheError where the file has no vocabulary."""

    def __init__(self, path: Path) -> None:
        self.model = load_model(path, NativeLog().install(), vocab_only=True)
        self.vocab = llama_h.llama_model_get_vocab(self.model)
        if llama_h.llama_vocab_type(self.vocab) == llama_h.LLAMA_VOCAB_TYPE_NONE:
            self.close()
            raise MiniCacheError(f"{path} has no vocabulary, so no text can be read with it")
        self.size = int(llama_h.llama_vocab_n_tokens(self.vocab))
        self.bos = int(llama_h.llama_vocab_bos(self.vocab))
        self.eos = int(llama_h.llama_vocab_eos(self.vocab))
        # some models fail without it, as their attention relies on this token
        self.begins_with_bos = bool(llama_h.llama_vocab_get_add_bos(self.vocab)) and self.bos >= 0

    def __enter__(self) -> Vocabulary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model."""
        llama_h.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """The text's tokens without a beginning-of-text token; with `special`, names as <|end|> are special tokens."""
        data = text.encode("utf-8")
        size = len(data) + 16
        buffer = (ctypes.c_int32 * size)()
        n = llama_h.llama_tokenize(self.vocab, data, len(data), buffer, size, False, special)
        if n < 0:
            raise MiniCacheError(f"a text of {len(data)} bytes cannot be made into tokens")
        return list(buffer[:n])

    def begun(self, tokens: list[int]) -> list[int]:
        """The tokens after a beginning-of-text token, where the model needs one."""
        needs = self.begins_with_bos and tokens[:1] != [self.bos]
        return [self.bos, *tokens] if needs else tokens

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens, without special ones."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        size = 16 * len(tokens) + 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n = llama_h.llama_detokenize(self.vocab, array, len(tokens), buffer, size, False, False)
            if n >= 0:
                return buffer.raw[:n].decode("utf-8", "ignore")
            size = -n

    def ends(self, token: int) -> bool:
        """Whether this token ends generation."""
        return bool(llama_h.llama_vocab_is_eog(self.vocab, token))

    def text_of(self, token: int) -> str:
        """The text of one token, special ones too; "" for a token that the vocabulary lacks (-1)."""
        if token < 0:
            return ""
        return str(llama_h.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace"))

    def chat_template(self) -> ChatTemplate:
        """The model's own, or the plain one where it has none."""
        source = llama_h.llama_model_chat_template(self.model, None)
        text = source.decode("utf-8", "replace") if source else None
        return ChatTemplate.from_source(text, self.text_of(self.bos), self.text_of(self.eos))

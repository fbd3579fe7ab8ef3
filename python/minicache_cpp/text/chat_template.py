"""The model's own chat template, which turns messages into the text the model was trained on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import jinja2
from llama_cpp import llama_chat_format

from ..errors import MiniCacheError

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

# for models without a template: they were not trained to chat, and plain names are as good as anything
PLAIN_TEMPLATE = """\
{% for message in messages %}
{{ message.role | capitalize }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
Assistant:
{%- endif %}"""
PLAIN_STOP = "\nUser:"


@dataclass
class ChatTemplate:
    """Renders messages as text."""

    formatter: Any
    stop: tuple[str, ...] = ()  # texts that end an answer, besides the model's own end-of-turn tokens
    is_plain: bool = False

    @classmethod
    def from_source(cls, source: str | None, bos: str, eos: str) -> ChatTemplate:
        """Makes the template from Jinja text, or the plain one for None. Raises MiniCacheError if it cannot be read."""
        try:
            formatter = llama_chat_format.Jinja2ChatFormatter(
                source or PLAIN_TEMPLATE, eos_token=eos, bos_token=bos
            )
        except jinja2.TemplateError as error:
            raise MiniCacheError(f"the model's chat template cannot be read: {error}") from None
        return cls(formatter) if source else cls(formatter, stop=(PLAIN_STOP,), is_plain=True)

    def render(self, messages: list[Message], ask: bool = True) -> str:
        """The conversation as text, with `ask` up to where the model's answer begins.

        Raises MiniCacheError where the template refuses these messages.
        """
        try:
            return self._render(messages, ask)
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            if len(messages) > 1 and messages[0]["role"] == "system":
                # some templates have no system message; it goes before the first question then
                first = {"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
                try:
                    return self._render([first, *messages[2:]], ask)
                except (jinja2.TemplateError, ValueError, TypeError):
                    pass
            raise MiniCacheError(f"the model's chat template refuses this conversation: {error}") from None

    def opening(self, system: list[Message]) -> str:
        """The text that every conversation with this system message begins with."""
        # the common beginning of two conversations that differ in the first letter of the first question
        texts = [self.render([*system, {"role": "user", "content": question}]) for question in ("a", "b")]
        return os.path.commonprefix(texts)  # noqa: RUF071  (letter by letter is what is wanted)

    def _render(self, messages: list[Message], ask: bool) -> str:
        self.formatter.add_generation_prompt = ask
        return str(self.formatter(messages=messages).prompt)
